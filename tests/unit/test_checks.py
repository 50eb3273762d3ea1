"""System checks."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.db import connections

from bus import checks, default
from bus.subscriptions import Subscription
from workers.apps import check_bus


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({}, "BUS['URL'] is missing"),
        ({"URL": "redis://x", "PREFX": "shop"}, "Did you mean 'PREFIX'?"),
        ({"URL": "ftp://x"}, "not a server URL"),
        ({"URL": "redis://x", "TIMEOUT": -1}, "TIMEOUT"),
    ],
)
def test_a_wrong_setting_is_an_error_that_says_what_is_wrong(settings, setting: dict, text: str) -> None:
    settings.BUS = setting

    (error,) = checks.check_setting()

    assert error.id == "jitney.E001"
    assert text in error.msg


def test_a_right_setting_passes_without_a_connection(settings) -> None:
    settings.BUS = {"URL": "redis://127.0.0.1:1/0"}

    assert checks.check_setting() == []


def test_our_own_packages_are_in_their_places() -> None:
    assert checks.check_places() == []
    assert check_bus() == []


def test_another_package_of_the_same_name_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = tmp_path / "workers"
    monkeypatch.setattr(checks, "_place", lambda name: theirs if name == "workers" else None)

    (error,) = checks.check_places()

    assert error.id == "jitney.E002"
    assert str(theirs) in error.msg


class _KeepsOut:
    """A database router that keeps our tables out of everything."""

    def allow_migrate(self, db: str, app_label: str, **_: object) -> bool | None:
        return False if app_label == "jitney" else None


def test_a_router_that_keeps_our_tables_out_of_an_atomic_database_is_an_error(
    settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic = Subscription(topic="orders", group="stock", handler=print, atomic="default")
    monkeypatch.setattr(default, "subscriptions", [atomic])
    assert checks.check_databases() == []
    settings.DATABASE_ROUTERS = [_KeepsOut()]
    (error,) = checks.check_databases()
    assert error.id == "jitney.E004"
    assert "router keeps the tables of app 'jitney' out" in error.msg


def test_a_database_of_an_unknown_kind_is_refused_for_atomic_handlers_and_else_said_to_be_untried(
    settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic = Subscription(topic="orders", group="stock", handler=print, atomic="default")
    monkeypatch.setattr(default, "subscriptions", [atomic])
    assert checks.check_vendors() == []
    monkeypatch.setattr(connections["default"], "vendor", "oracle")
    monkeypatch.setattr(connections["default"], "display_name", "Oracle")
    (error,) = checks.check_databases()
    (warning,) = checks.check_vendors()
    assert (error.id, warning.id) == ("jitney.E004", "jitney.W001")
    assert "that database is Oracle" in error.msg
    settings.DATABASE_ROUTERS = [_KeepsOut()]
    assert checks.check_vendors() == []
