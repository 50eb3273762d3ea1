"""Workers without pools and threads: only what each sees in Redis and does about it, look by look."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.topics.registry import STRAYS
from workers.membership.identity import this_process
from workers.membership.keeper import Keeper
from workers.progress import Progress
from workers.scheduling.scheduler import Scheduler


def handle(message: Any) -> None:
    """Never called: nothing runs here."""


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Seer:
    """One worker's membership, that looks when it is told to."""

    def __init__(
        self, bus: Bus, serves: Iterable[str], clock: Clock, *, loose: Iterable[str] = (), slots: int = 1
    ) -> None:
        """`serves`: `topic/group`, of which those in `loose` are unordered."""
        self.identity = dataclasses.replace(this_process(), boot="")  # so nobody proves anything
        self.progress = Progress(slots)
        self.scheduler = Scheduler(self.progress, slots, "nonce", clock=lambda: 0.0)  # nothing waits
        subscriptions = [
            Subscription(
                topic=each.split("/")[0],
                group=each.split("/")[1],
                handler=handle,
                ordering="none" if each in set(loose) else "key",
            )
            for each in sorted(serves)
        ]
        self._bus = bus
        self._heard = b""
        self.membership = Keeper(
            bus,
            self.identity,
            subscriptions,
            self.scheduler,
            slots=slots,
            processes=1,
            on_change=lambda: None,
            clock=clock,
        )

    @property
    def name(self) -> str:
        return self.identity.incarnation

    def look(self) -> bool:
        """One look, as the thread does it; whether the lanes that it holds are others now."""
        before = self.scheduler.owned()
        newest = self._bus.client.call("XREVRANGE", self._bus.keys.control, "+", "-", "COUNT", 1)
        if newest and newest[0][0] != self._heard:
            self._heard = newest[0][0]
            if STRAYS.encode() in newest[0][1]:
                self.membership.strays.note_hint()
            self.membership.look()  # as the watcher has it done
        while not self.membership._errands.empty():
            self.membership._errands.get()
        assert self.membership._attempt(self.membership._look)
        return self.scheduler.owned() != before

    def leave(self) -> None:
        self.scheduler.stopped = True
        self.membership.leave()
