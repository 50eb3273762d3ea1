"""The files of one run: a directory of its own, so that no run disturbs another or an earlier one's data.

    .jitney/demo-password             the admin's password, made once for this checkout, mode 0600
    .jitney/demo/<when>-<pid>/        db.sqlite3, server/ (Valkey), ledgers/, logs/

The newest KEPT finished runs stay; older ones are removed, and that is said.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from bus.safety import private

#: Runs that are kept to look at, besides the one that runs.
KEPT = 5


class RunDirectory:
    """Where one run of the demo keeps its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "db.sqlite3"
        self.server = path / "server"
        self.ledgers = path / "ledgers"
        self.logs = path / "logs"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"


@contextmanager
def new_run(data: Path) -> Iterator[RunDirectory]:
    """Make a fresh directory under `data`, locked for as long as the run lasts."""
    base = data / "demo"
    private.directory(base)
    run = RunDirectory(base / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}")
    for directory in (run.path, run.ledgers, run.logs):
        private.directory(directory)
    lock = run.path / "running"
    with lock.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield run
        finally:
            lock.unlink()


def remove_old(data: Path) -> list[Path]:
    """Remove all finished runs but the newest KEPT; return what was removed."""
    finished = [path for path in sorted((data / "demo").iterdir()) if path.is_dir() and not _running(path)]
    old = finished[:-KEPT]
    for path in old:
        shutil.rmtree(path)
    return old


def password(data: Path) -> str:
    """Return the admin's password of this checkout; however many runs start at once, all get the same."""
    return private.text(data / "demo-password", lambda: secrets.token_urlsafe(9))


def _running(path: Path) -> bool:
    try:
        with (path / "running").open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
