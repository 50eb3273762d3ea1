"""The threads of upkeep: in the worker that leads, each does its steps when they are due.

`workers.membership.roster.Roster.leader` says who leads. Two leaders at once do no harm: each step is one
script per partition, or an update that says the same twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.db import Error, close_old_connections, connections

from bus.errors import BusError
from bus.safety.complaints import Complaints

logger = logging.getLogger("jitney.workers")


@dataclass(slots=True)
class Step:
    """One step of upkeep, done again and again."""

    work: Callable[[], None]
    seconds: float
    """Seconds from one beginning to the next. A step that takes longer is done again after all others that
    are due.
    """
    due: float = 0.0
    """When it is due, by the monotonic clock."""

    @property
    def name(self) -> str:
        return self.work.__name__.strip("_").replace("_", " ")


class Upkeep(threading.Thread):
    """One thread of upkeep in one worker."""

    def __init__(self, name: str, steps: Sequence[Step], *, is_leader: Callable[[], bool]) -> None:
        """`is_leader`: returns whether this worker leads now.

        It is called before each step, and does no I/O.
        """
        super().__init__(name=f"jitney-{name}", daemon=True)
        self._is_leader = is_leader
        self._stopping = threading.Event()
        self._steps = list(steps)
        self._complaints = Complaints(logger)

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.wait(self._pause(time.monotonic())):
            for step in self._steps:
                now = time.monotonic()
                if now < step.due or self._stopping.is_set():
                    continue
                step.due = now + step.seconds
                if self._is_leader():
                    self._attempt(step)
        connections.close_all()

    def _pause(self, now: float) -> float:
        """Return the seconds until the next step is due. A new leader starts late by one period at most."""
        return max(0.0, min(step.due for step in self._steps) - now)

    def _attempt(self, step: Step) -> None:
        try:
            step.work()
        except (BusError, Error) as error:
            hint = ". Did `manage.py migrate` run?" if isinstance(error, Error) else ""
            self._complaints.say(
                (step.name, type(error)),
                "Upkeep (%s) failed and is tried again: %s%s",
                step.name, error, hint,
            )  # fmt: skip
            close_old_connections()
        except Exception as error:
            # A thread that ends would leave the other steps undone, as long as this worker leads.
            self._complaints.say(
                (step.name, type(error)),
                "Upkeep (%s) failed and is tried again.",
                step.name,
                level=logging.ERROR,
                exc_info=error,
            )
