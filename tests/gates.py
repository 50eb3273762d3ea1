"""Stops a thread at a chosen moment of its transaction: before or after any statement, BEGIN and COMMIT."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections

#: How long a thread may be kept, or waited for. Seconds.
PATIENCE = 30.0


class Frozen(threading.Thread):
    """Runs `work` in a thread with a database connection of its own, frozen at moment number `gate` of it."""

    def __init__(self, work: Callable[[], None], gate: int | None = None, alias: str = "default") -> None:
        super().__init__(daemon=True)
        self._work = work
        self._gate = gate
        self._alias = alias
        self.moments: list[str] = []
        """What it has come to, such as "before INSERT" or "after COMMIT"."""
        self.holds = False
        """True: it has inserted a row, or has SQLite's lock, and has not ended its transaction."""
        self.error: BaseException | None = None
        self._news = threading.Condition()
        self._over = False
        self._thawed = threading.Event()

    # ------------------------------------------------------------------ for the test

    def wait_frozen(self) -> bool:
        """Wait until it is at its gate; False: it ended before."""
        return self._wait(lambda: self._gate is not None and len(self.moments) > self._gate)

    def wait_blocked(self, moment: str) -> bool:
        """Wait until it is about to do what another's locks keep it from; False: it ended without."""
        return self._wait(lambda: self.moments[-1:] == [moment])

    def _wait(self, condition: Callable[[], bool]) -> bool:
        with self._news:
            assert self._news.wait_for(lambda: condition() or self._over, PATIENCE), self.moments
            return condition()

    def thaw(self) -> None:
        self._thawed.set()

    def end(self) -> None:
        """Wait for its end. What it raised is in `error`."""
        self.thaw()
        self.join(PATIENCE)
        assert not self.is_alive(), self.moments

    # ------------------------------------------------------------------ in the thread

    def run(self) -> None:
        connection = connections[self._alias]
        try:
            connection.ensure_connection()
            with self._gated(connection), connection.execute_wrapper(self._statement):
                self._work()
        except BaseException as error:
            self.error = error
        finally:
            connection.close()
            with self._news:
                self._over = True
                self._news.notify_all()

    def _statement(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        word = str(sql).split(maxsplit=1)[0].upper()
        if word in ("SAVEPOINT", "RELEASE", "SET"):
            return execute(sql, params, many, context)
        with self._moment(word):
            result = execute(sql, params, many, context)
            immediate = context["connection"].vendor == "sqlite" and "IMMEDIATE" in str(sql)
            self.holds = self.holds or word == "INSERT" or immediate
            return result

    @contextmanager
    def _moment(self, word: str) -> Iterator[None]:
        self._reach(f"before {word}")
        yield
        self._reach(f"after {word}")

    def _reach(self, moment: str) -> None:
        with self._news:
            self.moments.append(moment)
            self._news.notify_all()
        if len(self.moments) - 1 == self._gate:
            assert self._thawed.wait(PATIENCE)

    @contextmanager
    def _gated(self, connection: Any) -> Iterator[None]:
        """BEGIN and COMMIT are no statements to Django, but for SQLite's BEGIN."""
        set_autocommit, commit, rollback = (
            connection._set_autocommit,
            connection._commit,
            connection._rollback,
        )

        def begin(autocommit: bool) -> None:
            if autocommit or connection.vendor == "sqlite":
                set_autocommit(autocommit)
            else:
                with self._moment("BEGIN"):
                    set_autocommit(autocommit)

        def end() -> None:
            with self._moment("COMMIT"):
                commit()
                self.holds = False

        def undo() -> None:
            rollback()
            self.holds = False

        connection._set_autocommit, connection._commit, connection._rollback = begin, end, undo
        try:
            yield
        finally:
            del connection._set_autocommit, connection._commit, connection._rollback
