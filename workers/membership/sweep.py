"""Removes leases that no worker will ever look for.

They are of deleted groups and topics, of workers long gone, and of older versions, which left some behind.
Only a SCAN finds them, so the worker that leads walks through the keys, a page at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from bus.client import Bus
from bus.errors import Forbidden
from bus.format.lane_id import ORDERED_LANE, LaneId
from bus.format.lease import owner_of
from bus.safety.complaints import Complaints
from bus.streams.wire import Argument
from bus.topics.registry import Tables
from workers.membership.leases import Leases
from workers.membership.roster import Roster

logger = logging.getLogger("jitney.workers")

#: How often a page of keys is looked through. Seconds.
SCAN_SECONDS = 5.0
#: Keys in a page, about: well under a millisecond of the server.
KEYS_A_SCAN = 1_000
#: The pause between two walks through all keys. Seconds.
REST_SECONDS = 3600.0


class Sweep:
    """One worker's walk through the keys. Not thread-safe. Raises BusUnavailable."""

    def __init__(
        self, bus: Bus, roster: Roster, leases: Leases, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bus = bus
        self._roster = roster
        self._leases = leases
        self._clock = clock
        self._complaints = Complaints(logger, clock=clock)
        self._cursor: Argument = "0"
        self._due = clock() + SCAN_SECONDS

    def step(self, tables: Tables) -> int:
        """Look through the next page, if it is time; return how many leases were removed."""
        if self._clock() < self._due:
            return 0
        self._due = self._clock() + SCAN_SECONDS
        try:
            return self._look_through(tables)
        except Forbidden as error:  # what is left there hurts nobody, so nothing else waits for it
            self._complaints.say("sweep", "Leases that nobody needs are left where they are: %s", error)
            return 0

    def _look_through(self, tables: Tables) -> int:
        pattern = self._bus.keys.all_leases
        self._cursor, page = self._bus.client.call(
            "SCAN", self._cursor, "MATCH", pattern, "COUNT", KEYS_A_SCAN
        )
        if self._cursor in (b"0", "0"):
            self._due = self._clock() + REST_SECONDS
        declared = {(group.topic, group.name) for group in tables.groups}
        parsed = [self._bus.keys.parse_lease(key) for key in page]
        lanes = [LaneId(*parts) for parts in parsed if parts is not None]
        return self._remove([lane for lane in lanes if not _is_home(lane, tables, declared)])

    def _remove(self, lanes: list[LaneId]) -> int:
        values = self._leases.read(lanes)
        ownerless = {}
        for lane in lanes:
            owner = owner_of(values.get(lane, ""))
            if not owner or self._roster.is_gone(owner):
                ownerless[lane] = values.get(lane, "")
        return len(self._leases.retire(ownerless))


def _is_home(lane: LaneId, tables: Tables, declared: set[tuple[str, str]]) -> bool:
    """Return whether it is the ordered lane of a declared group in a partition: there is always one."""
    spec = tables.topics.get(lane.topic)
    exists = spec is not None and lane.partition < spec.partitions
    return exists and (lane.topic, lane.group) in declared and lane.lane == ORDERED_LANE
