"""System checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.db import connections

from bus import checks, default
from bus.consuming.subscriptions import Subscription
from workers.apps import check_bus

ROOT = Path(__file__).resolve().parents[2]

#: A project of somebody who knows nothing of these tests: file → text.
PROJECT = {
    "site_settings.py": """
SECRET_KEY = "not for the web"
INSTALLED_APPS = ["bus", "workers", "site_shop"]
BUS = {"URL": "redis://127.0.0.1:1/0"}
DATABASES = {
    name: {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{name}.sqlite3"} for name in ("default", "infra")
}
DATABASE_ROUTERS = ["site_settings.Apart"]


class Apart:
    def allow_migrate(self, db, app_label, **hints):
        return db == "infra" if app_label == "jitney" else None
""",
    "site_shop/__init__.py": "",
    "site_shop/consumers.py": """
import bus


@bus.subscribe("orders", group="stock", atomic=True)
def book(message):
    print(message)
""",
}


def manage(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`manage.py …` of that project, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BUS_")}
    environment |= {
        "DJANGO_SETTINGS_MODULE": "site_settings",
        "PYTHONPATH": os.pathsep.join((str(directory), str(ROOT))),
    }
    (directory / "manage.py").write_text(
        "import sys\nfrom django.core.management import execute_from_command_line as run\nrun(sys.argv)\n"
    )
    return subprocess.run(
        [sys.executable, "manage.py", *command], cwd=directory, env=environment, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in PROJECT.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_check_command_knows_the_handlers_of_a_project(project: Path) -> None:
    run = manage(project, "check")

    assert run.returncode == 1
    assert "(jitney.E004) subscribe('orders', group='stock', atomic='default')" in run.stderr
    assert "a database router keeps the tables of app 'jitney' out" in run.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nobody_has_this", "No module named 'nobody_has_this'"),
        ("import bus\n@bus.subscribe('orders', group='g')\ndef gone(message):\n    yield", "generator"),
    ],
)
def test_the_check_command_says_what_no_worker_could_import(project: Path, text: str, told: str) -> None:
    (project / "site_shop/consumers.py").write_text(text)

    run = manage(project, "check")

    assert run.returncode == 1
    assert "(jitney.E005)" in run.stderr
    assert told in run.stderr


def test_other_commands_do_not_import_handlers(project: Path) -> None:
    (project / "site_shop/consumers.py").write_text("import nobody_has_this")

    run = manage(project, "migrate", "--plan")

    assert run.returncode == 0, run.stderr


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
    assert checks.check_packages() == []
    assert check_bus() == []


def test_another_package_of_the_same_name_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = tmp_path / "workers"
    monkeypatch.setattr(checks, "_path_of", lambda name: theirs if name == "workers" else None)

    (error,) = checks.check_packages()

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
    assert checks.check_handlers() == []
    settings.DATABASE_ROUTERS = [_KeepsOut()]
    (error,) = checks.check_handlers()
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
    (error,) = checks.check_handlers()
    (warning,) = checks.check_vendors()
    assert (error.id, warning.id) == ("jitney.E004", "jitney.W001")
    assert "that database is Oracle" in error.msg
    settings.DATABASE_ROUTERS = [_KeepsOut()]
    assert checks.check_vendors() == []


def test_mysql_is_told_from_mariadb_where_databases_may_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    # given what Django has for both, which know each other apart by a connection only
    monkeypatch.setattr(connections["default"], "vendor", "mysql")
    monkeypatch.setattr(connections["default"], "display_name", "MySQL")
    monkeypatch.setattr(connections["default"], "mysql_is_mariadb", False, raising=False)

    # then nobody is asked in a plain check, and `check --database default` and `migrate` say it
    assert checks.check_vendors(databases=None) == []
    assert checks.check_vendors(databases=["other"]) == []
    (warning,) = checks.check_vendors(databases=["default"])
    assert (warning.id, warning.msg) == (
        "jitney.W001", "Database 'default' is MySQL. Jitney was never tried with it."
    )  # fmt: skip
    monkeypatch.setattr(connections["default"], "mysql_is_mariadb", True, raising=False)
    assert checks.check_vendors(databases=["default"]) == []
