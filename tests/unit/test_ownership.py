"""Workers that serve different groups, each acting for itself, divide all lanes: none is left to another who
leaves it to the first, and then nothing moves any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from bus.format.lane_id import LaneId
from tests.unit.test_assignment import NAMES, PLACES, lanes_of, random_owners
from workers.membership.assignment import assign

Serves = Mapping[str, set[str]]

#: "old/group" is of code that some workers do not have; nobody serves "lost/group".
ALL = [*PLACES, "old/group", "lost/group"]

serving = st.dictionaries(st.sampled_from(NAMES), st.sets(st.sampled_from(ALL[:-1])), min_size=1)
places = st.dictionaries(st.sampled_from(ALL), st.integers(1, 9), min_size=1)
seeds = st.integers(0, 2**16)
decliners = st.sets(st.sampled_from(NAMES), max_size=3)


def served(workers: Serves, lanes: list[LaneId]) -> set[LaneId]:
    return {lane for lane in lanes if any(f"{lane.topic}/{lane.group}" in each for each in workers.values())}


class World:
    """Leases, and workers that look at them and act, one after the other, each for itself."""

    def __init__(self, workers: Serves, lanes: list[LaneId], owners: Mapping[LaneId, str], busy: set[str]):
        self.workers = dict(workers)
        self.lanes = lanes
        # What belongs to the dead was freed.
        self.owners = {lane: owner for lane, owner in owners.items() if owner in workers}
        self.busy = {name: frozenset() for name in busy & workers.keys()}
        self.moves: Counter[tuple[str, str]] = Counter()

    def look(self, me: str) -> bool:
        """Give up what should not be ours, take what is free and should be; True if that changed anything."""
        assigned = assign(self.workers, self.lanes, self.owners, self.busy)
        wanted = {lane for lane, worker in assigned.items() if worker == me}
        given = [lane for lane, owner in self.owners.items() if owner == me and lane not in wanted]
        for lane in given:
            del self.owners[lane]
        taken = [lane for lane in wanted if lane not in self.owners]
        for lane in taken:
            self.owners[lane] = me
            self.moves[lane.topic, lane.group] += 1
        return bool(given or taken)

    def settle(self, draw: st.DataObject) -> None:
        """Have them act in any order until nobody changes anything."""
        for _ in range(2 * len(self.workers) + 4):
            order = draw.draw(st.permutations(sorted(self.workers)))
            changes = [self.look(name) for name in order]
            if not any(changes):
                return
        raise AssertionError(f"lanes go on moving: {self.workers}, {self.owners}")

    def assert_complete(self) -> None:
        assert set(self.owners) == served(self.workers, self.lanes)
        for lane, owner in self.owners.items():
            assert f"{lane.topic}/{lane.group}" in self.workers[owner]

    def assert_even(self) -> None:
        for topic, group in {(lane.topic, lane.group) for lane in self.owners}:
            counts = Counter(
                owner for lane, owner in self.owners.items() if (lane.topic, lane.group) == (topic, group)
            )
            able = [name for name, serves in self.workers.items() if f"{topic}/{group}" in serves]
            shares = [counts[name] for name in able if name not in self.busy] or [
                counts[name] for name in able
            ]
            assert max(shares) - min(shares) <= 1


@given(serving, places, seeds, decliners, st.data())
def test_in_any_order_all_lanes_come_to_be_held_and_then_nothing_moves(workers, places, seed, busy, data):
    lanes = lanes_of(places)
    world = World(workers, lanes, random_owners(lanes, seed), busy)
    world.settle(data)
    world.assert_complete()
    world.assert_even()


@given(serving, places, st.sampled_from(NAMES), st.sets(st.sampled_from(ALL[:-1])), st.data())
def test_a_worker_that_comes_or_goes_or_has_other_code_moves_few_lanes_of_any_group(
    workers, places, name, serves, data
):
    # Given workers that have divided everything
    lanes = lanes_of(places)
    world = World(workers, lanes, {}, set())
    world.settle(data)
    # When one comes, or comes back with other handlers, or goes
    if name in world.workers and data.draw(st.booleans()):
        del world.workers[name]
    else:
        world.workers[name] = serves
    if not world.workers:
        return
    held = dict(world.owners)
    world.owners = {lane: owner for lane, owner in held.items() if owner != name}
    free = Counter((lane.topic, lane.group) for lane, owner in held.items() if owner == name)
    world.moves.clear()
    world.settle(data)
    # Then everything is held again, and of each group no more has moved than was free or is one share, and
    # the lanes beyond an even division, which go where the totals are low
    world.assert_complete()
    sizes = Counter((lane.topic, lane.group) for lane in lanes)
    for place, count in world.moves.items():
        able = sum("/".join(place) in each for each in world.workers.values())
        assert count <= max(free[place], -(-sizes[place] // able)) + sizes[place] % able, (place, count)


def test_two_workers_with_different_groups_leave_no_lane_to_each_other():
    # Given one that serves both groups, and one that serves the second alone
    workers = {"a": {"t0/g0", "t1/g1"}, "b": {"t1/g1"}}
    lanes = lanes_of({"t0/g0": 1, "t1/g1": 1})
    # When each computes who should own what, whoever owns what now
    for owners in ({}, dict.fromkeys(lanes, "a"), {lanes[1]: "b"}):
        # Then both come to the same, and the second lane is with the one who has nothing else
        assert assign(workers, lanes, owners) == {lanes[0]: "a", lanes[1]: "b"}
