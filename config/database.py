"""Where the project's database is: the environment variable JITNEY_DATABASE → an entry of DATABASES."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bus.safety import private


def database(url: str, data: Path) -> dict[str, Any]:
    """Return the entry for `postgresql://user:password@host:port/name`, `mariadb://…`, or "" (SQLite).

    The host may be the directory of a unix socket (of MariaDB: the socket), with %2F for its slashes.
    Raises ValueError.
    """
    if not url:
        # Made here, since SQLite would let the umask decide; its further files follow this one.
        return _sqlite(private.file(private.directory(data) / "db.sqlite3"))
    parts = urlsplit(url)
    name = unquote(parts.path.removeprefix("/"))
    if parts.scheme not in ("postgresql", "postgres", "mariadb") or not name:
        raise ValueError(
            "JITNEY_DATABASE must be postgresql://user:password@host:port/name, the same with mariadb://, or "
            "empty for SQLite."
        )
    try:
        port = parts.port
    except ValueError:
        # Its text is a part of the password where that has a slash: Python's own error would quote it.
        raise ValueError(
            "JITNEY_DATABASE: the port is no number; write %2F for '/' and %3A for ':' in a password."
        ) from None
    return {
        **(_mariadb() if parts.scheme == "mariadb" else _postgresql()),
        "NAME": name,
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(parts.hostname or ""),
        "PORT": str(port or ""),
    }


# A frozen worker's transaction must not keep its successor waiting for ever (see docs/delivery.md).


def _postgresql() -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "OPTIONS": {"options": "-c idle_in_transaction_session_timeout=60s -c lock_timeout=10s"},
    }


def _mariadb() -> dict[str, Any]:
    if find_spec("MySQLdb") is None:
        # The driver that needs no compiler. Django knows it by the other one's name.
        import_module("pymysql").install_as_MySQLdb()
    return {
        "ENGINE": "django.db.backends.mysql",
        "OPTIONS": {
            "charset": "utf8mb4",
            "init_command": "SET SESSION idle_transaction_timeout=60, SESSION innodb_lock_wait_timeout=10",
        },
    }


def _sqlite(path: Path) -> dict[str, Any]:
    # Web, workers and commands write at the same time: a write takes the lock at the start of its
    # transaction and waits for it, instead of failing half-way with "database is locked".
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": path,
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
    }
