"""The `BUS` setting → one frozen, validated value."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from bus.errors import ConfigurationError
from bus.values import check_name

#: The first part of every key in Redis, where nothing else is said.
PREFIX = "bus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one bus. Field names are the keys of the `BUS` setting in lower case."""

    url: str
    """embedded://<dir>, redis://, rediss://, unix:// or redis+sentinel://h1,h2/<name>."""
    prefix: str = PREFIX
    timeout: float = 5.0
    """Seconds after which any one call to Redis gives up."""
    max_message_bytes: int = 1024 * 1024
    dedupe_window: int = 600
    """Seconds within which the same message_id is stored once."""
    slots: int | None = None
    """Pool processes that slices may use at once; None: see workers.scheduler."""
    groups: tuple[str, ...] | None = None
    """Consumer groups that workers here serve; None: all that are subscribed."""
    read_only: bool = False
    history_bytes: int = 32 * 1024 * 1024
    held_limit: int = 10_000
    """Held-back messages of a group in one partition at which it stops fetching new ones."""
    dead_limit: int = 100_000
    """Dead letters kept of a group in one partition; the excess is counted."""
    new_group_limit: int | None = None
    """Messages with which a new group may begin in a worker; None: any number."""

    def __post_init__(self) -> None:
        if not isinstance(self.url, str):
            raise ConfigurationError(f"BUS['URL'] must be a str, not {self.url!r}.")
        check_name("BUS['PREFIX']", self.prefix)
        for name, least in (("timeout", 0.05), ("max_message_bytes", 1), ("dedupe_window", 1),
                            ("history_bytes", 0), ("held_limit", 1), ("dead_limit", 1)):  # fmt: skip
            number = getattr(self, name)
            if (
                isinstance(number, bool)
                or not isinstance(number, int | float)
                or not least <= number < math.inf
            ):
                raise ConfigurationError(
                    f"BUS[{name.upper()!r}] must be a number, {least} or more, not {number!r}."
                )
        slots = self.slots
        if slots is not None and (isinstance(slots, bool) or not isinstance(slots, int) or slots < 1):
            raise ConfigurationError(f"BUS['SLOTS'] must be a whole number, 1 or more, not {slots!r}.")
        most = self.new_group_limit
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
            raise ConfigurationError(
                f"BUS['NEW_GROUP_LIMIT'] must be a whole number, 0 or more, not {most!r}."
            )
        for group in self.groups or ():
            check_name("Group", group)


def from_mapping(mapping: Mapping[str, Any]) -> Settings:
    """Validate the `BUS` dictionary. An unknown key is an error that names the nearest known one."""
    known = {field.name.upper(): field.name for field in fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key == "TEST":
            _check_test(mapping, value)
            continue
        if key not in known:
            near = get_close_matches(str(key).upper(), [*known, "TEST"], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known keys: {', '.join(known)}, TEST."
            raise ConfigurationError(f"BUS has an unknown key {key!r}.{hint}")
        values[known[key]] = value
    if not values.get("url"):
        raise ConfigurationError(
            "BUS['URL'] is missing: say where Redis is, such as 'redis://localhost:6379/0'."
        )
    if values.get("groups") is not None:
        values["groups"] = _groups(values["groups"])
    return Settings(**values)


def _check_test(mapping: Mapping[str, Any], test: object) -> None:
    """BUS["TEST"] is laid over BUS in a test run (see bus.testrun): what comes of that must be right too."""
    if test is None:
        return
    if not isinstance(test, Mapping) or "TEST" in test:
        raise ConfigurationError(
            f"BUS['TEST'] must be a dictionary of what tests have for themselves, such as "
            f"{{'PREFIX': 'test'}}, not {test!r}."
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
    """Settings for a process without Django: `BUS_URL`, `BUS_PREFIX`, `BUS_GROUPS`."""
    return from_mapping(environment_mapping(os.environ if environ is None else environ))


def environment_mapping(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the environment says, by the keys of the `BUS` dictionary."""
    names = {"URL": "BUS_URL", "PREFIX": "BUS_PREFIX", "GROUPS": "BUS_GROUPS"}
    return {key: environ[name] for key, name in names.items() if environ.get(name)}


def from_django() -> Settings:
    """Settings of the Django project: the `BUS` dictionary, `BUS_GROUPS` from the environment on top."""
    return from_mapping(django_mapping())


def django_mapping(setting: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A copy of the `BUS` dictionary (or of another one) with `BUS_GROUPS` from the environment on top."""
    if setting is None:
        from django.conf import settings

        setting = getattr(settings, "BUS", None)
    mapping = dict(setting or {})
    if os.environ.get("BUS_GROUPS"):
        mapping["GROUPS"] = os.environ["BUS_GROUPS"]
    return mapping
