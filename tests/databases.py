"""Databases for tests that need real transactions: SQLite files, or of a private PostgreSQL or MariaDB."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql
from django.core.management import call_command
from django.db import connections

from config.database import database
from tests.mariadb import MariaDB
from tests.postgres import Postgres

#: Every kind that the tests run on.
KINDS = ("sqlite", "postgresql", "mariadb")


@contextmanager
def default_database(entry: dict[str, Any]) -> Iterator[None]:
    """The alias "default" stands for this database, in all threads."""
    before = connections.settings["default"]
    _close()
    connections.settings["default"] = connections.configure_settings({"default": entry})["default"]
    try:
        yield
    finally:
        _close()
        connections.settings["default"] = before


def _close() -> None:
    connections["default"].close()
    del connections["default"]


class Copies:
    """Makes databases with all tables; migrates each kind once and copies it."""

    def __init__(self, directory: Path, get_server: Callable[[str], Postgres | MariaDB]) -> None:
        """`get_server`: starts the server of a kind, or gives the one that runs."""
        self._directory = directory
        self._get_server = get_server
        self._templates: dict[str, Any] = {}

    def make(self, kind: str, directory: Path) -> dict[str, Any]:
        """An entry of DATABASES; `kind`: one of KINDS. SQLite's file is in this directory."""
        if kind == "sqlite":
            if kind not in self._templates:
                self._templates[kind] = self._migrated(database("", self._directory))
            shutil.copy(self._templates[kind]["NAME"], directory / "db.sqlite3")
            return database("", directory)
        server = self._get_server(kind)
        if kind not in self._templates:
            server.create("template")
            self._templates[kind] = self._migrated(database(server.url("template"), self._directory))
        name = f"t{uuid.uuid4().hex[:10]}"
        server.create(name, "template")
        return database(server.url(name), self._directory)

    @staticmethod
    def _migrated(entry: dict[str, Any]) -> dict[str, Any]:
        with default_database(entry):
            call_command("migrate", verbosity=0)
        return entry


def raw_connection(entry: dict[str, Any]) -> Any:
    """A connection without Django, in autocommit mode."""
    if entry["ENGINE"].endswith("sqlite3"):
        return sqlite3.connect(entry["NAME"], isolation_level=None, timeout=30)
    if entry["ENGINE"].endswith("mysql"):
        # Names in double quotes, as the others take them.
        quotes = "SET SESSION sql_mode = CONCAT(@@sql_mode, ',ANSI_QUOTES')"
        return pymysql.connect(
            unix_socket=entry["HOST"], user=entry["USER"], database=entry["NAME"], autocommit=True,
            charset="utf8mb4", init_command=quotes,
        )  # fmt: skip
    import psycopg

    return psycopg.connect(host=entry["HOST"], user=entry["USER"], dbname=entry["NAME"], autocommit=True)
