"""Watches who owns the lanes: one that nobody owns, although somebody serves it, is found here."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bus.client import Bus
from bus.errors import BusError
from bus.format.lane_id import ORDERED_LANE
from tests.chaos.faults import Fault
from tests.chaos.plan import SERVER_KINDS

#: Between two looks. Seconds.
LOOK_SECONDS = 0.5
SECOND = 1_000_000_000
#: A worker that died or froze counts as dead after so long, and its lanes are taken. ns.
PROMISE = 20 * SECOND
#: Of these a lane may be with nobody: whoever should take it is dead, and not known to be. A worker that
#: stops by itself, and a pool process that dies, leave nothing to be found out.
UNCLEAN = frozenset(("kill", "quit", "freeze", "trap"))

Lane = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Orphan:
    """A lane that nobody owned, while somebody served it. Times in ns of CLOCK_MONOTONIC."""

    lane: Lane
    since: int
    until: int

    @property
    def seconds(self) -> float:
        return (self.until - self.since) / SECOND

    def is_excused(self, faults: Iterable[Fault], serves: Mapping[str, Collection[str]]) -> bool:
        """Whether it was taken within the promised time of the last fault that touched it.

        That is a fault of a worker that serves it (`serves`: worker → groups), from that time before it was
        unowned; and of the server, if the time was not over: everybody then observes anew.
        """
        ends = self.since + PROMISE
        for fault in sorted(faults, key=lambda each: each.at):
            if fault.at > self.until:
                break
            if fault.kind in SERVER_KINDS:
                back = self.until if fault.until is None else fault.until
                ends = max(ends, back + PROMISE) if fault.at <= ends else ends
            elif fault.kind in UNCLEAN and self.lane[2] in serves.get(fault.worker or "", ()):
                ends = max(ends, fault.at + PROMISE)
        return self.until <= ends


class Ownership:
    """Looks at the leases of ordered lanes from time to time."""

    def __init__(self, bus: Bus, partitions: dict[str, int]) -> None:
        self._bus = bus
        self._partitions = partitions
        self._since: dict[Lane, int] = {}
        self._looked = 0
        self._over: list[Orphan] = []

    def look(self, groups: Mapping[str, str]) -> None:
        """Look, if it is time to. `groups`: ordered groups that workers serve now → their topics."""
        now = time.monotonic_ns()
        if now - self._looked < LOOK_SECONDS * SECOND:
            return
        lanes = [(topic, n, group) for group, topic in groups.items() for n in range(self._partitions[topic])]
        try:
            owned = self._owned(lanes)
        except BusError:
            return  # the server is away: what was seen before goes on
        self._looked = now
        unowned = {lane for lane in lanes if lane not in owned}
        for lane in self._since.keys() - unowned:
            self._over.append(Orphan(lane, self._since.pop(lane), now))
        for lane in unowned:
            self._since.setdefault(lane, now)

    @property
    def now(self) -> list[Lane]:
        """Lanes that nobody owned at the last look."""
        return sorted(self._since)

    @property
    def orphans(self) -> list[Orphan]:
        """The longest first."""
        still = [Orphan(lane, since, self._looked) for lane, since in self._since.items()]
        return sorted([*self._over, *still], key=lambda orphan: -orphan.seconds)

    def _owned(self, lanes: Sequence[Lane]) -> set[Lane]:
        if not lanes:
            return set()
        keys = [
            self._bus.keys.partition(topic, number).lease(group, ORDERED_LANE)
            for topic, number, group in lanes
        ]
        workers = set(self._bus.client.call("HKEYS", self._bus.keys.workers))
        values = self._bus.client.call("MGET", *keys)
        return {
            lane
            for lane, value in zip(lanes, values, strict=True)
            if value is not None and value.rpartition(b":")[0] in workers
        }
