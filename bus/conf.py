"""Reads and checks the `BUS` setting, as one frozen value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from bus.errors import ConfigurationError
from bus.safety.secret import Secret
from bus.streams.url import Address, Credentials, Url, parse
from bus.values import check_name

#: The first part of every key in Redis, where nothing else is said.
PREFIX = "bus"

#: Settings that can come from the environment of a process without Django.
ENVIRONMENT = {
    "URL": "BUS_URL",
    "USERNAME": "BUS_USERNAME",
    "PASSWORD": "BUS_PASSWORD",
    "SENTINEL_USERNAME": "BUS_SENTINEL_USERNAME",
    "SENTINEL_PASSWORD": "BUS_SENTINEL_PASSWORD",
    "PREFIX": "BUS_PREFIX",
    "GROUPS": "BUS_GROUPS",
    "READ_ONLY": "BUS_READ_ONLY",
}

#: The kind of each number, the least and the most. The server, a socket, or the calendar takes no more (an
#: argument of Redis has 512 MiB). The server would refuse a fraction, message by message.
_NUMBERS: dict[str, tuple[Any, float, float]] = {
    "timeout": (int | float, 0.05, 86_400),
    "max_message_bytes": (int, 1, 512 * 1024 * 1024),
    "dedupe_window": (int, 1, 10 * 366 * 86_400),
    "history_bytes": (int, 0, 1 << 50),
    "held_limit": (int, 1, 1 << 50),
    "dead_limit": (int, 1, 1 << 50),
}

_CREDENTIALS = ("username", "password", "sentinel_username", "sentinel_password")
#: The words for yes and no in the environment.
WORDS = {
    "1": True, "true": True, "yes": True, "on": True,
    "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one bus. Field names are the keys of the `BUS` setting in lower case."""

    url: str
    """embedded://<dir>, redis://, rediss://, unix:// or redis+sentinel://h1,h2/<name>."""
    username: str | None = None
    """User of the server, if the URL has none."""
    password: str | None = None
    sentinel_username: str | None = None
    """User of the sentinels, which have users of their own."""
    sentinel_password: str | None = None
    prefix: str = PREFIX
    timeout: float = 5.0
    """Seconds after which any one call to Redis gives up."""
    max_message_bytes: int = 1024 * 1024
    dedupe_window: int = 600
    """Seconds within which the same message_id is stored once."""
    slots: int | None = None
    """Pool processes that slices may use at once; None: see workers.scheduling.scheduler."""
    groups: tuple[str, ...] | None = None
    """Consumer groups that workers here serve; None: all that are subscribed."""
    read_only: bool = False
    history_bytes: int = 32 * 1024 * 1024
    held_limit: int = 10_000
    """Held-back messages of a group in one partition at which it stops fetching new ones."""
    dead_limit: int = 100_000
    """Dead letters kept of a group in one partition; the excess is counted."""
    new_group_limit: int | None = None
    """The most messages with which a worker lets a new group begin; None: any number."""

    def __post_init__(self) -> None:
        for name in ("url", *_CREDENTIALS):
            text = getattr(self, name)
            if not isinstance(text, str) and (text is not None or name == "url"):
                # Not its repr: bytes would show a password.
                raise ConfigurationError(f"BUS[{name.upper()!r}] must be a str, not {type(text).__name__}.")
            if text is not None:
                object.__setattr__(self, name, _masking(name, text))
        if not isinstance(self.read_only, bool):
            raise ConfigurationError(f"BUS['READ_ONLY'] must be True or False, not {self.read_only!r}.")
        check_name("BUS['PREFIX']", self.prefix)
        for name, (kind, least, most) in _NUMBERS.items():
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, kind) or not least <= number <= most:
                noun = "whole number" if kind is int else "number"
                raise ConfigurationError(
                    f"BUS[{name.upper()!r}] must be a {noun} from {least} to {most}, not {number!r}."
                )
        slots = self.slots
        if slots is not None and (isinstance(slots, bool) or not isinstance(slots, int) or slots < 1):
            raise ConfigurationError(f"BUS['SLOTS'] must be a whole number, 1 or more, not {slots!r}.")
        limit = self.new_group_limit
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise ConfigurationError(
                f"BUS['NEW_GROUP_LIMIT'] must be a whole number, 0 or more, not {limit!r}."
            )
        for group in self.groups or ():
            check_name("Group", group)
        self.address  # noqa: B018  a wrong URL is found here, and not when somebody connects

    @property
    def address(self) -> Address:
        """The address of the server, and the user there. Raises ConfigurationError."""
        given = {name: getattr(self, name) for name in _CREDENTIALS}
        return parse(self.url, Credentials(**given))


def masking(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with every text that can hold a password replaced by one whose repr hides it."""
    return {key: _masking(str(key).lower(), value) for key, value in mapping.items()}


def _masking(name: str, value: Any) -> Any:
    if name == "test" and isinstance(value, Mapping):
        return masking(value)
    if not isinstance(value, str):
        return value
    if name == "url":
        return Url(value)
    # Under a key that is spelled wrong, which is an error soon, anything may stand.
    shown = {field.name for field in fields(Settings)} - {"password", "sentinel_password"}
    return value if name in shown else Secret(value)


def from_mapping(mapping: Mapping[str, Any]) -> Settings:
    """Check the `BUS` dictionary and return its settings.

    Raises ConfigurationError; for an unknown key it names the nearest known one.
    """
    mapping = masking(mapping)
    fields_of = {field.name.upper(): field.name for field in fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key == "TEST":
            _check_test(mapping, value)
            continue
        if key not in fields_of:
            near = get_close_matches(str(key).upper(), [*fields_of, "TEST"], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known keys: {', '.join(fields_of)}, TEST."
            raise ConfigurationError(f"BUS has an unknown key {key!r}.{hint}")
        values[fields_of[key]] = value
    if not values.get("url"):
        raise ConfigurationError(
            "BUS['URL'] is missing: say where Redis is, such as 'redis://localhost:6379/0'."
        )
    if values.get("groups") is not None:
        values["groups"] = _groups(values["groups"])
    return Settings(**values)


def _check_test(mapping: Mapping[str, Any], test: object) -> None:
    """Check the settings of a test run: BUS with BUS["TEST"] laid over it (see bus.testrun)."""
    if test is None:
        return
    if not isinstance(test, Mapping) or "TEST" in test:
        raise ConfigurationError(
            f"BUS['TEST'] must be a dictionary of what tests have for themselves, such as "
            f"{{'PREFIX': 'test'}}, not {type(test).__name__}."
        )
    try:
        from_mapping({**{key: value for key, value in mapping.items() if key != "TEST"}, **test})
    except ConfigurationError as error:
        raise ConfigurationError(f"In BUS['TEST']: {error}") from None


def _groups(groups: object) -> tuple[str, ...]:
    parts = groups.split(",") if isinstance(groups, str) else groups
    if not isinstance(parts, list | tuple | set | frozenset) or not all(
        isinstance(part, str) for part in parts
    ):
        raise ConfigurationError(
            f"BUS['GROUPS'] must be a list of names, or names with commas in between, not {groups!r}."
        )
    return tuple(part.strip() for part in parts if part.strip())


def from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of a process without Django, from the variables of ENVIRONMENT.

    Raises ConfigurationError.
    """
    return from_mapping(environment_mapping(os.environ if environ is None else environ))


def environment_mapping(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings in the environment, by the keys of the `BUS` dictionary."""
    values: dict[str, Any] = {key: environ[name] for key, name in ENVIRONMENT.items() if environ.get(name)}
    if "READ_ONLY" in values:
        # A word that is not understood is an error when Settings see it: "no" was not meant by it.
        values["READ_ONLY"] = WORDS.get(values["READ_ONLY"].strip().lower(), values["READ_ONLY"])
    return values


def from_django() -> Settings:
    """Return the settings of the Django project: `BUS`, and `BUS_GROUPS` from the environment on top.

    Raises ConfigurationError.
    """
    return from_mapping(django_mapping())


def django_mapping(setting: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a copy of `setting` (None: `BUS`), with `BUS_GROUPS` from the environment on top."""
    if setting is None:
        from django.conf import settings

        setting = getattr(settings, "BUS", None)
    mapping = masking(setting or {})
    if os.environ.get("BUS_GROUPS"):
        mapping["GROUPS"] = os.environ["BUS_GROUPS"]
    return mapping
