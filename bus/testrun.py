"""Keeps tests off the bus of the project: in a test run the default bus is one of the tests' own, or none.

Else the development worker would handle a message that a test publishes, in the development database. And a
worker that a test starts would take what waits for the development worker, and its effects would go with the
test database. A bus that a test makes itself, `bus.Bus(url)`, is the test's own affair.

Only what surely means tests counts as a sign of a test run: a production process that is taken for one stops.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from bus import conf
from bus.conf import Settings
from bus.errors import ConfigurationError
from bus.streams.url import parse

#: The environment variable that processes of a test run inherit: the process id of the run. "0" says that
#: this is no test run.
MARK = "BUS_TEST_RUN"


def sign() -> str | None:
    """Return a sentence, without its full stop, on what shows that this is a test run; None if nothing does.

    If it belongs to one, processes that it starts from here on are marked too.
    """
    mark = os.environ.get(MARK, "")
    if mark == "0":
        return None
    sentence = _sign(mark)
    if sentence is not None and not mark:
        os.environ[MARK] = str(os.getpid())
    return sentence


def _sign(mark: str) -> str | None:
    if mark and mark != str(os.getpid()):
        return f"a test run started this process ({MARK} is in its environment)"
    if "PYTEST_VERSION" in os.environ or "PYTEST_CURRENT_TEST" in os.environ:
        return "pytest runs here"
    if _runs_unittest():
        return "unittest runs here"
    if "django.core.management" in sys.modules and sys.argv[1:2] in (["test"], ["testserver"]):
        return f"manage.py {sys.argv[1]} runs here"
    if _is_set_up_for_tests():
        return "Django's test environment is set up"
    return next(
        (f"database {alias!r} is one for tests" for alias in _aliases() if is_test_database(alias)), None
    )


def _runs_unittest() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == "unittest.__main__"


def _is_set_up_for_tests() -> bool:
    """Return whether setup_test_environment, which all runners built on Django's call, made `mail.outbox`."""
    return hasattr(sys.modules.get("django.core.mail"), "outbox")


def _aliases() -> list[str]:
    if "django.db" not in sys.modules:
        return []
    from django.conf import settings
    from django.db import connections

    return list(connections.settings) if settings.configured else []


def is_test_database(alias: str) -> bool:
    """Return True if a database is there for tests.

    There are three signs: the process is set up for tests; the database is in memory only; or it has the name
    that the settings give for tests. A name that merely begins with "test_" proves nothing.
    """
    from django.db import connections

    settings = connections.settings[alias]
    name, test_name = str(settings["NAME"]), (settings.get("TEST") or {}).get("NAME")
    in_memory = name == ":memory:" or "mode=memory" in name
    return _is_set_up_for_tests() or in_memory or name == str(test_name)


# ---------------------------------------------------------------------- the settings of the default bus


def from_django() -> Settings:
    """Return the settings of a Django project's default bus.

    In a test run: BUS["TEST"] laid over BUS, or an overridden BUS. Raises ConfigurationError, in a test run
    also if tests would work on the bus of the project.
    """
    why = sign()
    if why is None:
        return conf.from_django()
    chosen, own = conf.django_mapping(), _own_setting()
    tests = dict(chosen.pop("TEST", None) or {})
    if chosen == _plain(own):
        tests |= _from_environment(os.environ)
    return _of_tests(why, chosen, tests, _plain(own))


def from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings for a process without Django.

    In a test run BUS_TEST_URL and BUS_TEST_PREFIX hold.
    """
    environ = os.environ if environ is None else environ
    why = sign()
    if why is None:
        return conf.from_environment(environ)
    own = conf.environment_mapping(environ)
    return _of_tests(why, own, _from_environment(environ), own)


def _of_tests(
    why: str, chosen: Mapping[str, Any], tests: Mapping[str, Any], own: Mapping[str, Any]
) -> Settings:
    merged = {**chosen, **tests}
    if "URL" in tests and "PREFIX" not in tests:
        # Another server by its text may be the same one: a prefix of its own is right on any.
        merged["PREFIX"] = f"{chosen.get('PREFIX', conf.PREFIX)}-test"
    settings = conf.from_mapping(merged)
    if settings.prefix == own.get("PREFIX", conf.PREFIX) and _leads_there(settings, own.get("URL")):
        raise ConfigurationError(
            f"This is a test run ({why}), and tests have no bus of their own: nothing is published, read or "
            "consumed, so that they touch nothing real. Put BUS['TEST'] = {'PREFIX': 'test'} into the "
            "settings, with a 'URL' if it should be another server (without Django BUS_TEST_URL, "
            "BUS_TEST_PREFIX); or use override_settings(BUS=…), or bus.Bus(url). "
            f"{MARK}=0 in the environment says that this is no test run."
        )
    return settings


def _leads_there(settings: Settings, url: object) -> bool:
    """Return whether a URL leads to the server and database of these settings, however it is written."""
    if not isinstance(url, str) or not url:
        return False
    try:
        return settings.address.is_same_place(parse(url))
    except ConfigurationError:  # the project's own URL is wrong: nothing real is there
        return settings.url == url


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    names = {"URL": "BUS_TEST_URL", "PREFIX": "BUS_TEST_PREFIX"}
    return {key: environ[name] for key, name in names.items() if environ.get(name)}


def _plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != "TEST"}


def _own_setting() -> dict[str, Any]:
    """Return BUS as the settings of the project have it, below all that tests override."""
    from django.conf import UserSettingsHolder, settings

    lazy: Any = settings
    lazy.is_overridden("BUS")  # loads the settings, if nobody has yet
    below = lazy._wrapped
    while isinstance(below, UserSettingsHolder) and not isinstance(below.default_settings, ModuleType):
        below = below.default_settings
    return conf.django_mapping(getattr(below, "BUS", {}))
