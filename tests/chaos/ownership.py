"""Watches who owns the lanes: one that nobody owns, although somebody serves it, is found here."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from bus.client import Bus
from bus.errors import BusError
from bus.lane import ORDERED_LANE

#: Between two looks. Seconds.
LOOK_SECONDS = 0.5

Lane = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Orphan:
    """A lane that nobody owned."""

    lane: Lane
    seconds: float
    """How long, at the longest."""


class Ownership:
    """Looks at the leases of ordered lanes from time to time."""

    def __init__(self, bus: Bus, partitions: dict[str, int]) -> None:
        self._bus = bus
        self._partitions = partitions
        self._since: dict[Lane, float] = {}
        self._looked = 0.0
        self._longest: dict[Lane, float] = {}

    def look(self, groups: dict[str, str]) -> None:
        """Look, if it is time to. `groups`: ordered groups that workers serve now → their topics."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        lanes = [(topic, n, group) for group, topic in groups.items() for n in range(self._partitions[topic])]
        try:
            owned = self._owned(lanes)
        except BusError:
            self.forget()
            return
        self._since = {lane: self._since.get(lane, now) for lane in lanes if lane not in owned}
        for lane, since in self._since.items():
            self._longest[lane] = max(self._longest.get(lane, 0.0), now - since)

    def forget(self) -> None:
        """The server is away, or was: what was seen before counts no more."""
        self._since.clear()

    @property
    def now(self) -> list[Lane]:
        """Lanes that nobody owned at the last look."""
        return sorted(self._since)

    @property
    def orphans(self) -> list[Orphan]:
        """The longest first."""
        found = [Orphan(lane, seconds) for lane, seconds in self._longest.items()]
        return sorted(found, key=lambda orphan: -orphan.seconds)

    def _owned(self, lanes: Iterable[Lane]) -> set[Lane]:
        wanted = list(lanes)
        if not wanted:
            return set()
        keys = [
            self._bus.keys.partition(topic, number).lease(group, ORDERED_LANE)
            for topic, number, group in wanted
        ]
        workers = set(self._bus.client.call("HKEYS", self._bus.keys.workers))
        values = self._bus.client.call("MGET", *keys)
        return {
            lane
            for lane, value in zip(wanted, values, strict=True)
            if value is not None and value.rpartition(b":")[0] in workers
        }
