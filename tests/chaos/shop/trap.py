"""Has a handler's transaction wait, at some statement, for its worker to be frozen there.

The run lays a trap: a file with the number of steps to let pass (a step is before or after a statement). The
first pool process that finds it takes it, goes on to that step of a transaction, says who it is, and waits.
Then the run freezes the whole worker, and thaws it when its lanes have long been somebody else's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.db.backends.signals import connection_created

#: Nobody froze us in this time: the run has something else to do. Seconds.
PATIENCE = 4.0
#: A pause of this process so long was a freeze. Seconds.
FROZEN = 5.0


class Trap:
    """The trap at one path, as the pool processes of a worker see it."""

    def __init__(self, path: Path, worker: str) -> None:
        self._path = path
        self._worker = worker
        self._main = os.getpid()
        self._left: int | None = None
        """Steps to let pass, once the trap is ours."""

    def arm(self) -> None:
        """Watch the statements of all database connections that are made from now on."""
        connection_created.connect(self._on_connection, weak=False)

    def _on_connection(self, connection: Any, **_: Any) -> None:
        if self._execute not in connection.execute_wrappers:
            connection.execute_wrappers.append(self._execute)

    def _execute(self, execute: Callable[..., Any], sql: Any, params: Any, many: Any, context: Any) -> Any:
        if os.getpid() == self._main or not context["connection"].in_atomic_block:
            return execute(sql, params, many, context)
        if self._left is None:
            self._left = self._take()
        if self._left is None:
            return execute(sql, params, many, context)
        self._step()
        result = execute(sql, params, many, context)
        self._step()
        return result

    def _step(self) -> None:
        """Before or after a statement: wait here, if this is the place."""
        if self._left == 0:
            self._wait()
        if self._left is not None:
            self._left = self._left - 1 if self._left else None

    def _take(self) -> int | None:
        taken = self._path.with_suffix(f".{os.getpid()}")
        try:
            os.rename(self._path, taken)
        except FileNotFoundError:
            return None
        left = int(taken.read_text())
        taken.unlink()
        return left

    def _wait(self) -> None:
        caught = self._path.with_suffix(".caught")
        caught.with_suffix(".new").write_text(self._worker)
        os.replace(caught.with_suffix(".new"), caught)
        ends = last = time.monotonic()
        ends += PATIENCE
        while last < ends:
            time.sleep(0.02)  # what we wait for is to be frozen, of which nobody can tell us
            now = time.monotonic()
            if now - last > FROZEN:
                return
            last = now
        with suppress(FileNotFoundError):
            caught.unlink()
