"""What counts as a test run, and which bus tests get."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from django.core import mail
from django.db import connections
from django.test import override_settings

from bus import checks, conf, default, testrun
from bus.errors import ConfigurationError

OWN = "redis://localhost:6379/0"


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Any:
    """A process like that of a project's tests under pytest; `.BUS` sets what its settings file says."""
    monkeypatch.delenv(testrun.MARK)
    for name in ("BUS_TEST_URL", "BUS_TEST_PREFIX", "BUS_GROUPS"):
        monkeypatch.delenv(name, raising=False)

    def own_setting(setting: dict[str, Any]) -> None:
        settings.BUS = setting
        monkeypatch.setattr(testrun, "_own_setting", lambda: conf.django_mapping(setting))
        default.reset()

    yield own_setting
    default.reset()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process in which nothing shows that tests run; its environment is `testrun.os.environ`."""
    monkeypatch.setattr(testrun, "os", SimpleNamespace(environ={}, getpid=os.getpid))
    monkeypatch.delattr(mail, "outbox", raising=False)
    monkeypatch.setattr(sys, "argv", ["manage.py", "runserver"])
    databases = {"default": {"NAME": "/srv/shop/db.sqlite3", "TEST": {"NAME": None}}}
    monkeypatch.setattr("django.db.connections", SimpleNamespace(settings=databases))
    return monkeypatch


def test_an_ordinary_process_is_no_test_run(quiet: pytest.MonkeyPatch) -> None:
    assert testrun.sign() is None
    assert testrun.os.environ == {}


@pytest.mark.parametrize("command", ["test", "testserver"])
def test_the_commands_that_run_tests_are_known_before_they_begin(
    quiet: pytest.MonkeyPatch, command: str
) -> None:
    quiet.setattr(sys, "argv", ["manage.py", command, "shop"])

    assert testrun.sign() == f"manage.py {command} runs here"
    assert testrun.os.environ == {testrun.MARK: str(os.getpid())}, "what this process starts is not marked"


@pytest.mark.parametrize("name", ["PYTEST_VERSION", "PYTEST_CURRENT_TEST"])
def test_pytest_is_known_by_the_environment(quiet: pytest.MonkeyPatch, name: str) -> None:
    testrun.os.environ[name] = "9.2.0"

    assert testrun.sign() == "pytest runs here"


def test_unittest_is_known_by_the_main_module(quiet: pytest.MonkeyPatch) -> None:
    quiet.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="unittest.__main__"))

    assert testrun.sign() == "unittest runs here"


def test_what_a_test_run_starts_belongs_to_it(quiet: pytest.MonkeyPatch) -> None:
    testrun.os.environ[testrun.MARK] = str(os.getppid())

    assert "a test run started this process" in (testrun.sign() or "")


def test_a_mark_of_our_own_ends_with_what_it_was_made_for(quiet: pytest.MonkeyPatch) -> None:
    testrun.os.environ[testrun.MARK] = str(os.getpid())

    assert testrun.sign() is None


def test_zero_says_that_nothing_is_a_test_run(quiet: pytest.MonkeyPatch) -> None:
    testrun.os.environ.update({"PYTEST_VERSION": "9.2.0", testrun.MARK: "0"})

    assert testrun.sign() is None


@pytest.mark.parametrize(
    ("environment", "name", "test_name", "answer"),
    [
        (False, "/srv/shop/db.sqlite3", None, False),
        (False, "test_shop", None, False),  # a staging database may be called so
        (False, "shop_for_tests", "shop_for_tests", True),
        (False, ":memory:", None, True),
        (False, "file:memorydb_default?mode=memory&cache=shared", None, True),
        (True, "test_shop", None, True),
    ],
)
def test_a_test_database_is_known_by_the_runner_by_memory_or_by_the_name_in_settings(
    quiet: pytest.MonkeyPatch, environment: bool, name: str, test_name: str | None, answer: bool
) -> None:
    databases = {"default": {"NAME": name, "TEST": {"NAME": test_name}}}
    quiet.setattr("django.db.connections", SimpleNamespace(settings=databases))
    if environment:
        quiet.setattr(mail, "outbox", [], raising=False)

    assert testrun.is_test_database("default") is answer
    assert (testrun.sign() is not None) is answer


def test_without_a_bus_of_their_own_tests_have_none(guarded: Any) -> None:
    guarded({"URL": OWN})

    with pytest.raises(
        ConfigurationError, match=r"This is a test run \(pytest runs here\).*BUS\['TEST'\] = "
    ):
        default.get()
    assert checks.check_setting() == [], "the settings are right: tests that need no bus must run"


def test_a_setting_for_tests_is_laid_over_that_of_the_project(guarded: Any) -> None:
    guarded({"URL": OWN, "PREFIX": "shop", "DEAD_LIMIT": 7, "TEST": {"PREFIX": "shop-test", "TIMEOUT": 1}})

    found = testrun.from_django()

    assert (found.url, found.prefix, found.dead_limit, found.timeout) == (OWN, "shop-test", 7, 1)


@pytest.mark.parametrize("url", [OWN, "redis://localhost", "redis://other:6379/0"])
def test_a_url_for_tests_brings_a_prefix_of_its_own(guarded: Any, url: str) -> None:
    guarded({"URL": OWN, "PREFIX": "shop", "TEST": {"URL": url}})

    found = testrun.from_django()

    assert (found.url, found.prefix) == (url, "shop-test")


def test_the_place_of_the_project_is_refused_however_tests_name_it(guarded: Any) -> None:
    for tests in ({"URL": OWN, "PREFIX": "bus"}, {"PREFIX": "bus"}, {"TIMEOUT": 1}, {}):
        guarded({"URL": OWN, "TEST": tests})
        with pytest.raises(ConfigurationError, match="tests have no bus of their own"):
            testrun.from_django()


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (OWN, "redis://localhost"),
        (OWN, "redis://127.0.0.1:6379"),
        (OWN, "rediss://LOCALHOST/0"),
        (OWN, "redis://u:p@[::1]?db=0"),
        ("unix:///run/redis.sock", "unix://:p@/run/../run/redis.sock"),
        ("redis+sentinel://a,b/shop", "redis+sentinel://b:26379/shop/0"),
        ("embedded:///srv/shop", "embedded:///srv/other/../shop"),
    ],
)
def test_the_bus_of_the_project_is_known_however_its_url_is_written(
    guarded: Any, own: str, other: str
) -> None:
    guarded({"URL": own})

    with (
        override_settings(BUS={"URL": other}),
        pytest.raises(ConfigurationError, match="tests have no bus of their own"),
    ):
        default.get()


@pytest.mark.parametrize(
    "other",
    [
        "redis://localhost:6380/0",
        "redis://localhost/1",
        "redis://elsewhere/0",
        "unix:///a",
        "redis+sentinel://localhost:6379/m",
    ],
)
def test_another_place_is_a_bus_of_their_own(guarded: Any, other: str) -> None:
    guarded({"URL": OWN})

    with override_settings(BUS={"URL": other}):
        assert default.get().settings.url == other


def test_an_overridden_setting_is_the_bus_of_that_test_unless_it_is_still_that_of_the_project(
    guarded: Any,
) -> None:
    guarded({"URL": OWN})

    with override_settings(BUS={"URL": OWN, "PREFIX": "mine"}):
        assert default.get().settings.prefix == "mine"
    with (
        override_settings(BUS={"URL": OWN, "TIMEOUT": 1}),
        pytest.raises(ConfigurationError, match="tests have no bus of their own"),
    ):
        default.get()


def test_the_settings_below_all_overriding_are_those_of_the_project(settings: Any) -> None:
    before = testrun._own_setting()
    settings.BUS = {"URL": "redis://first"}
    with override_settings(BUS={"URL": "redis://second"}):
        assert testrun._own_setting() == before
    assert before["PREFIX"] == "bus"


def test_the_environment_can_name_the_bus_of_tests(guarded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUS_TEST_URL", "redis://tests")
    guarded({"URL": OWN})

    assert (testrun.from_django().url, testrun.from_django().prefix) == ("redis://tests", "bus-test")


def test_a_process_without_django_is_guarded_too(guarded: Any) -> None:
    own = {"BUS_URL": OWN, "BUS_PREFIX": "shop"}

    with pytest.raises(ConfigurationError, match="BUS_TEST_URL"):
        testrun.from_environment(own)
    found = testrun.from_environment({**own, "BUS_TEST_PREFIX": "shop-test"})
    assert (found.url, found.prefix) == (OWN, "shop-test")


@pytest.mark.parametrize(
    ("test", "text"),
    [
        ("test", r"BUS\['TEST'\] must be a dictionary"),
        ({"TEST": {}}, r"BUS\['TEST'\] must be a dictionary"),
        ({"PREFX": "a"}, r"In BUS\['TEST'\]: .*Did you mean 'PREFIX'"),
        ({"PREFIX": "a b"}, r"In BUS\['TEST'\]: .*PREFIX"),
    ],
)
def test_a_wrong_setting_for_tests_is_an_error_also_outside_of_tests(test: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        conf.from_mapping({"URL": OWN, "TEST": test})


def test_the_aliases_of_databases_are_those_of_the_settings() -> None:
    assert testrun._aliases() == list(connections)
