"""All children of the runner: restarted when they are killed, stopped together."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from demo.child import Child

#: A child that ends by itself so many times in a row, each time within QUICK seconds, cannot work.
_FAILURES, _QUICK = 5, 10.0

#: Seconds for which a child that was asked to end may go on.
_PATIENCE = 10.0


class CannotRun(RuntimeError):
    """A part of the demo does not start or does not stay up; the text has the end of its log."""


class Family:
    """The children that should be running."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._children: list[Child] = []
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}

    def start(self, child: Child) -> None:
        """Start a child and keep it running."""
        self._children.append(child)
        child.start()

    def watch(self, *, may_finish: frozenset[str] = frozenset()) -> None:
        """Start again what has ended, and say so; a child of `may_finish` that exits with 0 is done.

        Raises CannotRun if a child keeps failing by itself.
        """
        for child in self._children:
            code = child.ended()
            if code is None or (code == 0 and child.name in may_finish):
                continue
            if child.name not in self._due:
                self._due[child.name] = time.monotonic() + self._note(child, code)
            if time.monotonic() >= self._due[child.name]:
                del self._due[child.name]
                child.restarts += 1
                child.start()
                self._say(f"{child.name} is started again (pid {child.pid})")

    def finished(self, names: frozenset[str]) -> bool:
        """True when each of these children has ended with exit code 0."""
        return all(child.ended() == 0 for child in self._children if child.name in names)

    def stop(self, names: frozenset[str] | None = None) -> None:
        """End these children, or all: SIGTERM to all at once, then SIGKILL to those that do not heed it."""
        leaving = [child for child in self._children if names is None or child.name in names]
        for child in leaving:
            child.terminate()
        deadline = time.monotonic() + _PATIENCE
        while any(child.ended() is None for child in leaving) and time.monotonic() < deadline:
            time.sleep(0.02)
        for child in leaving:
            if child.ended() is None:
                self._say(f"{child.name} did not end within {_PATIENCE:.0f} s and is killed")
                child.kill()
            self._children.remove(child)

    def _note(self, child: Child, code: int) -> float:
        """Say how a child has ended; return after how many seconds it is to be started again."""
        if code < 0:  # somebody else's doing: no sign that it cannot work
            self._say(f"{child.name} (pid {child.pid}) was killed by {_signal_name(-code)}")
            return 0.0
        quick = time.monotonic() - child.started < _QUICK
        failures = self._failures[child.name] = self._failures.get(child.name, 0) + 1 if quick else 1
        self._say(f"{child.name} (pid {child.pid}) has ended with exit code {code}:\n{child.tail(5)}")
        if failures >= _FAILURES:
            raise CannotRun(f"{child.name} does not stay up. The end of {child.log}:\n{child.tail()}")
        return 0.5 * 2.0 ** (failures - 1)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
