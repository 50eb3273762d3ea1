"""Leases: taking, changing and giving back a worker's right to lanes, always by compare-and-set."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from bus.client import Bus
from bus.errors import ServerError
from bus.lane import LaneId, Outcomes
from bus.streams import commands
from bus.streams.connect import check
from workers.owned import OwnedLane


@dataclass(frozen=True, slots=True)
class Swap:
    """One compare-and-set."""

    lane: LaneId
    old: str
    """The value that must be there; "" for none."""
    new: str
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
            self._settle_finished(lane)
        kept = [lane for lane in given if lane.ordering != "none" or not self._retire(lane)]
        self.swap(Swap(lane.id, lane.lease, freed(lane.lease)) for lane in kept)
        if given:
            self._bus.registry.hint("release")

    def _settle_finished(self, lane: OwnedLane) -> None:
        """What a process has handled and cannot settle any more, since its lane was taken back or it died.

        The next slice would have done it; whoever has the lane next knows nothing of it and would handle it
        again. Left to him is only what has failed before: others of its key may wait for it.
        """
        finished = lane.fallen.finished if lane.fallen is not None else ()
        if not finished:
            return
        keys, group = self._bus.keys.partition(lane.id.topic, lane.id.partition), lane.id.group
        failed = self._bus.client.call("HMGET", keys.state(group), *finished)
        done = [message_id for message_id, known in zip(finished, failed, strict=True) if known is None]
        own = [
            keys.stream, keys.lease(group, lane.id.lane), keys.retry(group), keys.held(group),
            keys.state(group), keys.dead(group), keys.mark(group),
        ]  # fmt: skip
        limit, outcomes = self._bus.settings.dead_limit, Outcomes(done=done).dump()
        try:
            commands.run(
                self._bus.client, "turn", own, [lane.lease, group, lane.id.lane, 0, limit, outcomes, ""]
            )
        except ServerError as error:
            if not commands.is_nogroup(error):
                raise
        lane.fallen = None

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
            [swap.old, swap.new, lane.group, lane.lane, "1" if swap.suspect else ""],
        )


def owner_of(lease: str) -> str:
    """The incarnation that holds a lease; "" if it is free or missing."""
    owner = lease.rpartition(":")[0]
    return "" if owner == "free" else owner


def freed(lease: str) -> str:
    """The value of a lease that was given back: as unique as the one that it replaces."""
    return f"free:{lease.replace(':', '-')}"
