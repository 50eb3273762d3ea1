"""Where the project's database is: the environment variable JITNEY_DATABASE → an entry of DATABASES."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


def database(url: str, data: Path) -> dict[str, Any]:
    """`postgresql://user:password@host:port/name`, or "" for SQLite in the directory `data`.

    The host may be the directory of a unix socket, with %2F for its slashes. Raises ValueError.
    """
    if not url:
        return _sqlite(data / "db.sqlite3")
    parts = urlsplit(url)
    name = unquote(parts.path.removeprefix("/"))
    if parts.scheme not in ("postgresql", "postgres") or not name:
        raise ValueError(
            "JITNEY_DATABASE must be postgresql://user:password@host:port/name, or empty for SQLite."
        )
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(parts.hostname or ""),
        "PORT": str(parts.port or ""),
        # A frozen worker's transaction must not keep its successor waiting for ever (see docs/delivery.md).
        "OPTIONS": {"options": "-c idle_in_transaction_session_timeout=60s -c lock_timeout=10s"},
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
