"""Removes or adopts the lanes that workers left behind, in the partitions whose home is ours.

Each lane has a consumer name from the moment of its first lease (see lease.lua), so all are found by their
names. A lane with nothing pending is removed at once. A lane of an unordered group with something pending is
adopted: this worker drains it, and then it is removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from bus.client import Bus
from bus.format.lane_id import ORDERED_LANE, LaneId
from bus.format.lease import owner_of
from bus.streams import commands
from workers.membership.leases import Leases, Swap
from workers.membership.orderings import Orderings
from workers.membership.roster import Roster
from workers.membership.strays import Strays
from workers.scheduling.scheduler import Scheduler

#: How often homes are looked at where something may have been left behind. Seconds.
ADOPT_SECONDS = 5.0
#: Other homes that are looked at in the same go, by rotation, so that nothing stays for ever, whatever left
#: it.
HOMES_BY_ROTATION = 5


@dataclass(frozen=True, slots=True)
class _NamedLane:
    """A lane whose consumer name stands in its partition, and how many messages are pending in it."""

    lane: LaneId
    pending: int


class Orphans:
    """Looks after the lanes that workers left behind. Not thread-safe. Raises BusUnavailable."""

    def __init__(
        self,
        bus: Bus,
        me: str,
        roster: Roster,
        leases: Leases,
        orderings: Orderings,
        strays: Strays,
        scheduler: Scheduler,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._me = me
        self._roster = roster
        self._leases = leases
        self._orderings = orderings
        self._strays = strays
        self._scheduler = scheduler
        self._clock = clock
        self._next_look = 0.0
        self._peers: frozenset[str] = frozenset()
        self._alarmed = False
        """True if a worker has gone since the last look."""
        self._homes: set[LaneId] = set()
        self._suspected: set[LaneId] = set()
        """Homes of unordered groups where something may have been left behind."""
        self._buried: set[str] = set()
        """Workers that are gone whose lanes of unordered groups are free."""
        self._rota: list[LaneId] = []
        """The homes that are still to be looked at by rotation."""

    def tend(self, homes: set[LaneId]) -> None:
        """Look after what was left behind in those of these homes that we hold by now, if it is time."""
        self._alarmed = self._alarmed or bool(self._peers - self._roster.peers)
        self._peers = self._roster.peers
        if self._clock() < self._next_look:
            return
        self._next_look = self._clock() + ADOPT_SECONDS
        ours = homes & self._scheduler.owned().keys()
        here = {home for home in ours if self._orderings.of(home) == "none"}
        # A worker that is gone may have left something in any of them.
        self._suspected |= here if self._alarmed else here - self._homes
        self._suspected &= here
        self._homes, self._alarmed = here, False
        if not self._rota:
            self._rota = sorted(ours, reverse=True)
        next_homes, self._rota = self._rota[-HOMES_BY_ROTATION:], self._rota[:-HOMES_BY_ROTATION]
        self._look_at(sorted(self._suspected | ours.intersection(next_homes)))

    def _look_at(self, homes: list[LaneId]) -> None:
        named = self._named_lanes(homes)
        leases = self._leases.read(each.lane for each in named)
        owned = self._scheduler.owned()
        orphans = [each for each in named if each.lane not in owned and self._is_orphan(each.lane, leases)]
        empty = {orphan.lane: leases.get(orphan.lane, "") for orphan in orphans if not orphan.pending}
        retired = self._leases.retire(empty)
        self._adopt(
            [
                Swap(orphan.lane, value, self._leases.new_value(), suspect=bool(owner_of(value)))
                for orphan in orphans
                if orphan.lane not in retired and self._orderings.of(orphan.lane) == "none"
                for value in [leases.get(orphan.lane, "")]
            ]
        )
        self._strays.suspect(
            homes,
            {
                each.lane: leases[each.lane]
                for each in named
                if each.pending and owner_of(leases.get(each.lane, "")) in self._others()
                if not self._is_of_a_live_slot(each.lane, leases) or self._orderings.is_changing(each.lane)
            },
        )
        unsettled = {
            _home(each.lane)
            for each in named
            if each.lane not in retired and not self._is_of_a_live_slot(each.lane, leases)
        }
        self._suspected = (self._suspected - set(homes)) | (unsettled & self._homes)

    def _is_orphan(self, lane: LaneId, leases: dict[LaneId, str]) -> bool:
        # A lane has its lease before its name, so one without a lease, or with a free one, has no owner.
        # One of ours that we do not hold: the reply to an adoption was lost.
        owner = owner_of(leases.get(lane, ""))
        return owner in ("", self._me) or self._roster.is_gone(owner)

    def _is_of_a_live_slot(self, lane: LaneId, leases: dict[LaneId, str]) -> bool:
        """Return whether it is the lane of a live worker's own slot; an adopted one is not, and will go."""
        owner = owner_of(leases.get(lane, ""))
        return owner in self._roster.peers and lane.lane.startswith(f"{owner}.")

    def bury(self, gone: Collection[str]) -> bool:
        """Free the lanes of workers that are gone, in all partitions that we serve; return whether any went.

        The worker that has the home adopts them. It may have started after they were gone, and would have to
        watch for long before it knew that.
        """
        new = set(gone) - self._buried
        if not new:
            return False
        lanes = [each.lane for each in self._named_lanes(self._orderings.homes_under("none"))]
        swapped = self._leases.free_of(lanes, new)
        self._buried = (self._buried | new) & set(gone)
        return bool(swapped)

    def free_strays(self) -> None:
        """Free the lanes whose leases bear our name though we do not hold them, wherever we serve."""
        named = self._named_lanes(self._orderings.homes_under("none"))
        if self._strays.free(each.lane for each in named):
            self._bus.registry.hint("release")  # the worker that has the home adopts it

    def _others(self) -> frozenset[str]:
        return self._roster.peers - {self._me}

    def _adopt(self, swaps: list[Swap]) -> None:
        """Take over lanes with something pending, to drain them. Then they are removed."""
        for swap in self._orderings.take(swaps, drain_only=True).swaps:
            # The orphan's retries are in the zset that all lanes share: our other lanes must read it anew.
            self._scheduler.wake(
                lane
                for lane in self._scheduler.owned()
                if _home(lane) == _home(swap.lane) and lane != swap.lane
            )

    def _named_lanes(self, homes: Iterable[LaneId]) -> list[_NamedLane]:
        """Return the lanes of single slots whose names stand in the partitions of these homes."""
        homes = list(homes)
        asked: list[Any] = [
            ("XINFO", "CONSUMERS", self._bus.keys.partition(home.topic, home.partition).stream, home.group)
            for home in homes
        ]
        named = []
        for home, reply in zip(homes, self._bus.client.pipe(asked), strict=True):
            for raw in reply if isinstance(reply, list) else ():
                consumer = commands.fields_of(raw)
                name = consumer["name"]
                if name.isascii() and name != ORDERED_LANE.encode():  # no worker makes other names
                    lane = LaneId(home.topic, home.partition, home.group, name.decode())
                    named.append(_NamedLane(lane, int(consumer["pending"])))
        return named


def _home(lane: LaneId) -> LaneId:
    return LaneId(lane.topic, lane.partition, lane.group)
