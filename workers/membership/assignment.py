"""Computes which worker should own which lane: a pure function, the same for all workers.

The lanes of one topic and group are divided evenly. With P lanes and N workers each gets P // N, and P % N
workers get one more, an *extra*. Which workers get the extras is the only freedom, and it is used twice. A
worker that has an extra keeps it, so that a join or a leave moves few lanes. And an extra moves to a worker
whose total over all topics and groups is lower by two or more, so that a hundred topics of one partition do
not all stay with the worker that was there first.

A busy worker gets no lane that it does not hold, and those that it declines are free for the others. Where
that leaves it with less than P // N, the others share the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from types import MappingProxyType

from bus.format.lane_id import LaneId

#: A difference in lanes that is worth moving an extra for; with 1 it would go to and fro.
_UNEVEN = 2

_in_order = attrgetter("partition", "lane")


def assign(
    workers: Mapping[str, Collection[str] | None],
    lanes: Collection[LaneId],
    owners: Mapping[LaneId, str],
    declines: Mapping[str, Collection[LaneId]] = MappingProxyType({}),
) -> dict[LaneId, str]:
    """Return lane → the worker that should own it. A lane that no worker serves is left out.

    `workers`: live worker → what it serves as `topic/group`, None for everything. `owners`: who holds each
    lane now; it may name workers that are dead. `declines`: busy worker → the lanes, of whatever group, for
    which it has no slot, maybe none just now.

    The result does not depend on the order of the arguments. It is complete, and even to ±1 within a topic
    and group, except for busy workers that hold less. With its own result as `owners` it is the same again. A
    busy worker gets no lane that it does not hold, and none that it declines, unless all who serve the group
    are busy: then nobody could take over, and what they decline is ignored.
    """
    shares = _shares(workers, lanes, owners, declines)
    loads = dict.fromkeys(workers, 0)
    for share in shares:
        share.count_base(loads)
    for share in shares:
        share.keep_extras(loads)
    for share in shares:
        share.give_extras(loads)
    _even_out(shares, loads)
    return {lane: worker for share in shares for lane, worker in share.divide().items()}


def _even_out(shares: list[_Share], loads: dict[str, int]) -> None:
    # Every move lowers the sum of the squares of the loads, so this ends.
    for may_give in (_Share.free_extras, _Share.all_extras):
        moved = True
        while moved:
            moved = False
            for share in shares:
                moved = share.even_out(loads, may_give) or moved


def _shares(
    workers: Mapping[str, Collection[str] | None],
    lanes: Collection[LaneId],
    owners: Mapping[LaneId, str],
    declines: Mapping[str, Collection[LaneId]],
) -> list[_Share]:
    by_group: defaultdict[tuple[str, str], list[LaneId]] = defaultdict(list)
    for lane in lanes:
        by_group[lane.topic, lane.group].append(lane)
    shares = []
    for (topic, group), members in sorted(by_group.items()):
        eligible = sorted(
            name for name, serves in workers.items() if serves is None or f"{topic}/{group}" in serves
        )
        if eligible:
            shares.append(_Share(members, eligible, owners, declines))
    return shares


class _Share:
    """The division of the lanes of one topic and group among the workers that serve the group."""

    __slots__ = ("base", "extra_count", "extras", "free", "held", "kept")

    def __init__(
        self,
        lanes: list[LaneId],
        eligible: list[str],
        owners: Mapping[LaneId, str],
        declines: Mapping[str, Collection[LaneId]],
    ) -> None:
        busy = [worker for worker in eligible if worker in declines]
        if len(busy) == len(eligible):
            busy = []
        self.held: dict[str, list[LaneId]] = {worker: [] for worker in eligible}
        self.free: list[LaneId] = []
        for lane in sorted(lanes, key=_in_order):
            owner = owners.get(lane, "")
            is_free = owner in busy and lane in declines[owner]
            (self.free if is_free else self.held.get(owner, self.free)).append(lane)
        self.kept = self._set_apart(busy, len(lanes))
        left = len(lanes) - sum(map(len, self.kept.values()))
        self.base, self.extra_count = divmod(left, len(self.held))
        self.extras: set[str] = set()

    def _set_apart(self, busy: list[str], count: int) -> dict[str, list[LaneId]]:
        """Set apart the busy workers that hold no more than the base; return what each keeps.

        The others share the rest. That only raises the base, so the order does not matter. A busy worker that
        holds more stays among the others: its share is less than it holds, so it gets nothing new.
        """
        kept: dict[str, list[LaneId]] = {}
        while full := [
            worker
            for worker in busy
            if worker in self.held and len(self.held[worker]) <= count // len(self.held)
        ]:
            for worker in full:
                kept[worker] = self.held.pop(worker)
                count -= len(kept[worker])
        return kept

    def count_base(self, loads: dict[str, int]) -> None:
        for worker in self.held:
            loads[worker] += self.base
        for worker, lanes in self.kept.items():
            loads[worker] += len(lanes)

    def keep_extras(self, loads: dict[str, int]) -> None:
        """Let the workers that hold more than the base keep an extra, as far as there are extras."""
        over = [worker for worker, lanes in self.held.items() if len(lanes) > self.base]
        self._add_extras(over, loads)

    def give_extras(self, loads: dict[str, int]) -> None:
        """Give the extras that are left to the workers with the fewest lanes in all."""
        self._add_extras([worker for worker in self.held if worker not in self.extras], loads)

    def _add_extras(self, candidates: list[str], loads: dict[str, int]) -> None:
        candidates.sort(key=lambda worker: (loads[worker], worker))
        for worker in candidates[: self.extra_count - len(self.extras)]:
            self.extras.add(worker)
            loads[worker] += 1

    def even_out(self, loads: dict[str, int], may_give: Callable[[_Share], set[str]]) -> bool:
        """Move extras from workers with many lanes in all to those with few; True if one moved."""
        moved = False
        while givers := may_give(self):
            rich = max(givers, key=lambda worker: (loads[worker], worker))
            poor = min(self.held.keys() - self.extras, key=lambda worker: (loads[worker], worker))
            if loads[rich] - loads[poor] < _UNEVEN:
                break
            self.extras.remove(rich)
            self.extras.add(poor)
            loads[rich] -= 1
            loads[poor] += 1
            moved = True
        return moved

    def free_extras(self) -> set[str]:
        """Return the extras whose worker does not hold the lane yet: another may get it without a move."""
        return {worker for worker in self.extras if len(self.held[worker]) <= self.base}

    def all_extras(self) -> set[str]:
        return self.extras

    def divide(self) -> dict[LaneId, str]:
        """Let each worker keep what fits into its share, and fill up the others with the rest, both in order.

        Because of the order, a worker that takes one of its lanes changes nothing for the other lanes.
        """
        owned = {lane: worker for worker, lanes in self.kept.items() for lane in lanes}
        rest, wanting = list(self.free), []
        for worker, lanes in self.held.items():
            size = self.base + (worker in self.extras)
            owned.update(dict.fromkeys(lanes[:size], worker))
            rest += lanes[size:]
            wanting += [worker] * (size - len(lanes))
        rest.sort(key=_in_order)
        owned.update(zip(rest, wanting, strict=True))
        return owned
