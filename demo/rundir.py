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
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

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
    """A fresh directory under `data`, locked for as long as the run lasts."""
    base = data / "demo"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    run = RunDirectory(base / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}")
    for directory in (run.path, run.ledgers, run.logs):
        directory.mkdir(mode=0o700)
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
    """The admin's password of this checkout; however many runs start at once, all get the same."""
    file = data / "demo-password"
    if not file.exists():
        descriptor, fresh = tempfile.mkstemp(dir=data)  # mode 0600
        try:
            os.write(descriptor, secrets.token_urlsafe(9).encode())
            with suppress(FileExistsError):
                os.link(fresh, file)
        finally:
            os.close(descriptor)
            os.unlink(fresh)
    return file.read_text()


def _running(path: Path) -> bool:
    try:
        with (path / "running").open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
