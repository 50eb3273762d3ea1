"""Leases: taking, changing and giving back a worker's right to lanes, always by compare-and-set."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from bus.client import Bus
from bus.errors import ServerError
from bus.lane import Lane, LaneId
from bus.streams import commands
from bus.streams.connect import check
from bus.values import Ordering
from workers.owned import OwnedLane


@dataclass(frozen=True, slots=True)
class Swap:
    """One compare-and-set."""

    lane: LaneId
    old: str
    """The value that must be there; "" for none."""
    new: str
    ordering: Ordering | None = None
    """By which it is taken: refused where another is in effect. None where the lane is freed or kept."""
    suspect: bool = False
    """The owner did not give it back: what is pending may have killed it, and is marked so."""


class Leases:
    """The leases of one bus, as one worker sees and takes them. Raises BusUnavailable."""

    def __init__(self, bus: Bus, incarnation: str) -> None:
        self._bus = bus
        self._incarnation = incarnation
        self._tokens = itertools.count(1)

    def new_value(self) -> str:
        """A value that no lease has ever had: the incarnation is unique, the number only grows."""
        return f"{self._incarnation}:{next(self._tokens)}"

    def read(self, lanes: Iterable[LaneId]) -> dict[LaneId, str]:
        """The values of those lanes that have a lease."""
        wanted = list(lanes)
        if not wanted:
            return {}
        values = self._bus.client.call("MGET", *(self._key(lane) for lane in wanted))
        return {lane: value.decode() for lane, value in zip(wanted, values, strict=True) if value is not None}

    def swap(self, swaps: Iterable[Swap]) -> list[Swap]:
        """Compare-and-set many leases in one round trip; those that went through."""
        wanted = list(swaps)
        replies = commands.run_many(self._bus.client, "lease", [self._call(each) for each in wanted])
        return [each for each, reply in zip(wanted, replies, strict=True) if check(reply)[0] == 1]

    def give_back(self, lanes: Iterable[OwnedLane]) -> None:
        """Free lanes for others; an unordered lane with nothing pending goes, with its consumer name."""
        given = list(lanes)
        for lane in given:
            self._settle_fallen(lane)
        kept = [lane for lane in given if lane.ordering != "none" or not self._retire(lane)]
        self.swap(Swap(lane.id, lane.lease, freed(lane.lease), suspect=lane.suspect) for lane in kept)
        if given:
            self._bus.registry.hint("release")

    def _settle_fallen(self, owned: OwnedLane) -> None:
        """What a process has left and cannot settle any more, since its lane was taken back or it died.

        The next slice would have done it; whoever has the lane next knows nothing of it, would handle again
        what is done, and would try once more what has failed. Of a batch that was in hand he learns by the
        mark of a lease that was not given back.
        """
        fallen = owned.fallen
        if not fallen:
            return
        keys, group = self._bus.keys.partition(owned.id.topic, owned.id.partition), owned.id.group
        state, retries, held, now = self._bus.client.pipe(
            [
                ("HGETALL", keys.state(group)),
                ("ZRANGE", keys.retry(group), 0, -1, "WITHSCORES"),
                ("ZCARD", keys.held(group)),
                ("TIME",),
            ]
        )
        lane = Lane(owned.id, keys, owned.lease, owned.ordering)
        lane.load(check(state), check(retries), check(held))
        fallen.settle_in(lane, None, int(check(now)[0]) * 1000)
        own = [
            keys.stream, keys.lease(group, owned.id.lane), keys.retry(group), keys.held(group),
            keys.state(group), keys.dead(group), keys.mark(group),
        ]  # fmt: skip
        limit, outcomes = self._bus.settings.dead_limit, lane.outcomes.dump(lane.acks)
        try:
            commands.run(
                self._bus.client, "turn", own, [owned.lease, group, owned.id.lane, 0, limit, outcomes, ""]
            )
        except ServerError as error:
            if not commands.is_nogroup(error):
                raise
        owned.fallen, owned.suspect = None, owned.suspect or fallen.batch

    def _retire(self, lane: OwnedLane) -> bool:
        stream = self._bus.keys.partition(lane.id.topic, lane.id.partition).stream
        keys = [stream, self._key(lane.id)]
        try:
            return bool(
                commands.run(self._bus.client, "retire", keys, [lane.lease, lane.id.group, lane.id.lane])
            )
        except ServerError as error:
            if commands.is_nogroup(error):
                return False  # the group is gone, and its pending lists with it
            raise

    def _key(self, lane: LaneId) -> str:
        return self._bus.keys.partition(lane.topic, lane.partition).lease(lane.group, lane.lane)

    def _call(self, swap: Swap) -> tuple[list[str], list[str]]:
        lane = swap.lane
        keys = self._bus.keys.partition(lane.topic, lane.partition)
        return (
            [self._key(lane), keys.stream, keys.state(lane.group)],
            [swap.old, swap.new, lane.group, lane.lane, "1" if swap.suspect else "", swap.ordering or ""],
        )


def owner_of(lease: str) -> str:
    """The incarnation that holds a lease; "" if it is free or missing."""
    owner = lease.rpartition(":")[0]
    return "" if owner == "free" else owner


def freed(lease: str) -> str:
    """The value of a lease that was given back: as unique as the one that it replaces."""
    return f"free:{lease.replace(':', '-')}"
