"""Lets the main process fork only while none of its threads has SQLite open.

SQLite notes in the memory of a process which of its connections holds which lock. A pool process that is
forked while a thread of the main process has the file open inherits that note, but not the thread that would
ever take it back: if a write was under way, every write of the new process fails with "database is locked",
for ever (see "How To Corrupt An SQLite Database File", on fork). So threads have SQLite open only inside of
`work`, and a fork waits until nobody is inside.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from django.db import connections

logger = logging.getLogger("jitney.workers")

#: How long a fork waits at most: longer than any call to a database or to Redis should take. Seconds.
PATIENCE_SECONDS = 30.0


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class ForkGuard:
    """The guard of one process."""

    def __init__(self) -> None:
        self._armed = False
        self._begin()

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._local = threading.local()
        self._inside = 0
        self._forking = False

    def arm(self) -> None:
        """Begin to guard: from now on forks wait for `work`, which closes SQLite at its end.

        Children are not guarded.

        If no database is SQLite, nothing waits for anything.
        """
        engines = [database["ENGINE"] for database in connections.settings.values()]
        if not self._armed and any("sqlite" in engine for engine in engines):
            self._armed = True
            os.register_at_fork(
                before=self._before, after_in_parent=self._after, after_in_child=self._in_child
            )

    @contextmanager
    def work(self) -> Iterator[None]:
        """Guard the database work of a thread of the main process."""
        if not self._armed or getattr(self._local, "inside", False):
            yield
            return
        self._local.inside = True
        with self._changed:
            self._changed.wait_for(lambda: not self._forking, PATIENCE_SECONDS)
            self._inside += 1
        try:
            yield
        finally:
            for connection in connections.all(initialized_only=True):
                if connection.vendor == "sqlite":
                    connection.close()
            self._local.inside = False
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def _before(self) -> None:
        if not self._armed:
            return
        began = time.monotonic()
        with self._changed:
            self._forking = True
            if not self._changed.wait_for(lambda: not self._inside, PATIENCE_SECONDS):
                waited = time.monotonic() - began
                logger.warning("A pool process is started beside database work that took %.0f s.", waited)

    def _after(self) -> None:
        with self._changed:
            self._forking = False
            self._changed.notify_all()

    def _in_child(self) -> None:
        self._armed = False
        self._begin()


fork_guard = ForkGuard()


def guarded(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return the same function, which does its database work inside the guard of this process."""

    @wraps(function)
    def inside(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with fork_guard.work():
            return function(*args, **kwargs)

    return inside
