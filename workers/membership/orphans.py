"""Lanes that somebody left behind, in the partitions whose home is ours.

Each lane has a consumer name from the moment of its first lease (see lease.lua), so all are found by their
names. One with nothing pending goes at once. One of an unordered group that has something pending is adopted:
drained by us, then it goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from bus.client import Bus
from bus.format.lane_id import ORDERED_LANE, LaneId
from bus.format.lease import freed, owner_of
from bus.streams import commands
from workers.membership.leases import Leases, Swap
from workers.membership.orderings import Orderings
from workers.membership.roster import Roster
from workers.membership.strays import Strays
from workers.scheduling.scheduler import Scheduler

#: How often homes are looked at where something may have been left behind. Seconds.
ADOPT_SECONDS = 5.0
#: Other homes looked at in the same go, in turn, so that nothing stays for ever, whatever left it there.
ROUND = 5


@dataclass(frozen=True, slots=True)
class _Found:
    lane: LaneId
    pending: int


class Orphans:
    """Looks after lanes that somebody left behind. Not thread-safe. Raises BusUnavailable."""

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
        """True if somebody has gone since the last look."""
        self._homes: set[LaneId] = set()
        self._suspected: set[LaneId] = set()
        """Homes of unordered groups where something may have been left behind."""
        self._buried: set[str] = set()
        """Workers that are gone whose lanes of unordered groups are free."""
        self._round: list[LaneId] = []
        """The homes to be looked at in turn."""

    def tend(self, homes: set[LaneId]) -> None:
        """Look after what was left behind in those of these homes that are ours by now, if it is time."""
        self._alarmed = self._alarmed or bool(self._peers - self._roster.peers)
        self._peers = self._roster.peers
        if self._clock() < self._next_look:
            return
        self._next_look = self._clock() + ADOPT_SECONDS
        ours = homes & self._scheduler.owned().keys()
        here = {home for home in ours if self._orderings.of(home) == "none"}
        # Where somebody is gone he may have left something in any of them.
        self._suspected |= here if self._alarmed else here - self._homes
        self._suspected &= here
        self._homes, self._alarmed = here, False
        if not self._round:
            self._round = sorted(ours, reverse=True)
        turn, self._round = self._round[-ROUND:], self._round[:-ROUND]
        self._look_at(sorted(self._suspected | (ours.intersection(turn))))

    def _look_at(self, homes: list[LaneId]) -> None:
        found = self._consumers(homes)
        leases = self._leases.read(each.lane for each in found)
        owned = self._scheduler.owned()
        orphans = [each for each in found if each.lane not in owned and self._is_orphan(each.lane, leases)]
        empty = {each.lane: leases.get(each.lane, "") for each in orphans if not each.pending}
        retired = self._leases.retire(empty)
        self._adopt(
            [
                Swap(each.lane, value, self._leases.new_value(), suspect=bool(owner_of(value)))
                for each in orphans
                if each.lane not in retired and self._orderings.of(each.lane) == "none"
                for value in [leases.get(each.lane, "")]
            ]
        )
        self._strays.suspect(
            homes,
            {
                each.lane: leases[each.lane]
                for each in found
                if each.pending and owner_of(leases.get(each.lane, "")) in self._others()
                if not self._is_in_good_hands(each.lane, leases) or self._orderings.is_changing(each.lane)
            },
        )
        unsettled = {
            _home(each.lane)
            for each in found
            if each.lane not in retired and not self._is_in_good_hands(each.lane, leases)
        }
        self._suspected = (self._suspected - set(homes)) | (unsettled & self._homes)

    def _is_orphan(self, lane: LaneId, leases: dict[LaneId, str]) -> bool:
        # A lane has its lease before its name, so one without a lease, or with a free one, is nobody's.
        # One of ours that we do not hold: the reply to an adoption was lost.
        owner = owner_of(leases.get(lane, ""))
        return owner in ("", self._me) or self._roster.is_gone(owner)

    def _is_in_good_hands(self, lane: LaneId, leases: dict[LaneId, str]) -> bool:
        """Return whether it is a lane of a live worker's own slot, not one that was adopted and will go."""
        owner = owner_of(leases.get(lane, ""))
        return owner in self._roster.peers and lane.lane.startswith(f"{owner}.")

    def bury(self, gone: Collection[str]) -> bool:
        """Free the lanes of workers that are gone, in all partitions that we serve; return whether any went.

        Whoever has the home adopts them. That worker may have started after they were gone, and would have to
        watch for long before it knew it.
        """
        new = set(gone) - self._buried
        if not new:
            return False
        found = [each.lane for each in self._consumers(self._orderings.homes_under("none"))]
        swapped = self._leases.swap(
            Swap(lane, value, freed(value), suspect=True)
            for lane, value in self._leases.read(found).items()
            if owner_of(value) in new
        )
        self._buried = (self._buried | new) & set(gone)
        return bool(swapped)

    def free_strays(self) -> None:
        """Free the lanes that bear our name though we do not hold them, in all partitions that we serve."""
        found = self._consumers(self._orderings.homes_under("none"))
        if self._strays.free(each.lane for each in found):
            self._bus.registry.hint("release")  # whoever has the home adopts it

    def _others(self) -> frozenset[str]:
        return self._roster.peers - {self._me}

    def _adopt(self, swaps: list[Swap]) -> None:
        """Take over lanes with something pending: it is handled, then the lane goes."""
        for swap in self._orderings.take(swaps, drain_only=True).swaps:
            # The orphan's retries are in the zset that all lanes share: ours must read it anew.
            self._scheduler.wake(
                lane
                for lane in self._scheduler.owned()
                if _home(lane) == _home(swap.lane) and lane != swap.lane
            )

    def _consumers(self, homes: Iterable[LaneId]) -> list[_Found]:
        wanted = list(homes)
        asked: list[Any] = [
            ("XINFO", "CONSUMERS", self._bus.keys.partition(home.topic, home.partition).stream, home.group)
            for home in wanted
        ]
        found = []
        for home, reply in zip(wanted, self._bus.client.pipe(asked), strict=True):
            for raw in reply if isinstance(reply, list) else ():
                known = commands.fields_of(raw)
                name = known["name"]
                if name.isascii() and name != ORDERED_LANE.encode():  # what is not, no worker has made
                    lane = LaneId(home.topic, home.partition, home.group, name.decode())
                    found.append(_Found(lane, int(known["pending"])))
        return found


def _home(lane: LaneId) -> LaneId:
    return LaneId(lane.topic, lane.partition, lane.group)
