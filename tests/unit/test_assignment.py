"""The properties of the assignment that workers rely on, for all tables."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

from hypothesis import example, given
from hypothesis import strategies as st

from bus.format.lane_id import LaneId
from workers.membership.assignment import assign

NAMES = [f"w{number}" for number in range(8)]
PLACES = ["orders/inventory", "orders/revenue", "alerts/purchasing", "clicks/stats"]
Serves = Mapping[str, set[str] | None]


def lanes_of(places: Mapping[str, int]) -> list[LaneId]:
    """`{"orders/inventory": 8}` → its eight lanes."""
    split = [(*place.split("/"), count) for place, count in places.items()]
    return [LaneId(topic, number, group) for topic, group, count in split for number in range(count)]


places = st.dictionaries(st.sampled_from(PLACES), st.integers(0, 20))
lanes = places.map(lanes_of)
everybody = st.sets(st.sampled_from(NAMES)).map(dict.fromkeys)
serving = st.dictionaries(st.sampled_from(NAMES), st.none() | st.sets(st.sampled_from(PLACES)))
owners_by_seed = st.integers(0, 2**16)
decliners = st.sets(st.sampled_from(NAMES))


def random_owners(lanes: list[LaneId], seed: int) -> dict[LaneId, str]:
    """Any state of the leases: free ones, dead owners, owners of too much."""
    draw = random.Random(seed)
    return {lane: draw.choice([*NAMES, "dead-1", "free"]) for lane in lanes if draw.random() < 0.8}


def eligible(workers: Serves, lane: LaneId) -> list[str]:
    place = f"{lane.topic}/{lane.group}"
    return [name for name, serves in workers.items() if serves is None or place in serves]


@given(serving, lanes, owners_by_seed)
def test_every_lane_that_somebody_serves_is_assigned_to_one_who_serves_it(workers, lanes, seed):
    assigned = assign(workers, lanes, random_owners(lanes, seed))
    assert set(assigned) == {lane for lane in lanes if eligible(workers, lane)}
    assert all(worker in eligible(workers, lane) for lane, worker in assigned.items())


@given(serving, lanes, owners_by_seed)
def test_a_topic_and_group_is_even_to_one_lane(workers, lanes, seed):
    assigned = assign(workers, lanes, random_owners(lanes, seed))
    for place in {(lane.topic, lane.group) for lane in assigned}:
        counts = Counter(worker for lane, worker in assigned.items() if (lane.topic, lane.group) == place)
        shares = [counts[name] for name in eligible(workers, LaneId(place[0], 0, place[1]))]
        assert max(shares) - min(shares) <= 1


@given(serving, lanes, owners_by_seed)
def test_the_order_of_the_tables_does_not_matter(workers, lanes, seed):
    owners = random_owners(lanes, seed)
    draw = random.Random(seed)
    other_workers = dict(draw.sample(sorted(workers.items()), len(workers)))
    other_lanes = draw.sample(lanes, len(lanes))
    other_owners = dict(draw.sample(sorted(owners.items()), len(owners)))
    assert assign(other_workers, other_lanes, other_owners) == assign(workers, lanes, owners)


@given(serving, lanes, owners_by_seed)
def test_an_assignment_that_is_carried_out_is_assigned_again(workers, lanes, seed):
    assigned = assign(workers, lanes, random_owners(lanes, seed))
    assert assign(workers, lanes, assigned) == assigned


@given(everybody, st.integers(0, 40), st.lists(st.sampled_from(NAMES), max_size=8))
def test_a_join_or_leave_moves_no_more_lanes_of_a_group_than_one_share(workers, count, changes):
    for before, after, size, _ in history(workers, lanes_of({PLACES[0]: count}), changes):
        assert_few_moves(before, after, size)


@given(everybody, lanes, st.lists(st.sampled_from(NAMES), max_size=8))
@example(
    dict.fromkeys(NAMES[:8]), lanes_of({PLACES[0]: 12, PLACES[1]: 3, PLACES[2]: 16}), ["w0", "w1", "w0", "w1"]
)
def test_with_several_groups_only_extras_move_besides_so_that_the_totals_stay_even(workers, lanes, changes):
    for before, after, size, left in history(workers, lanes, changes):
        assert_few_moves(before, after, size, extras_of=left)


def history(workers, lanes, changes):
    """(assignment before, after, number of workers with the one that came or went, number of workers now) of
    each change."""
    now, assigned = dict(workers), assign(workers, lanes, {})
    for name in changes:
        size = len(now | {name: None})
        if name in now:
            del now[name]
        else:
            now[name] = None
        before, assigned = assigned, assign(now, lanes, assigned)
        yield before, assigned, size, len(now)


def assert_few_moves(before, after, workers: int, extras_of: int = 0) -> None:
    """`extras_of`: among so many workers each extra of a group may change hands too."""
    moved = Counter(
        (lane.topic, lane.group) for lane in after if lane in before and before[lane] != after[lane]
    )
    sizes = Counter((lane.topic, lane.group) for lane in before)
    for place, count in moved.items():
        extras = sizes[place] % extras_of if extras_of else 0
        assert count <= -(-sizes[place] // workers) + extras, (
            f"{count} of {sizes[place]} lanes of {place} moved"
        )


@given(st.integers(1, 8), st.integers(1, 60), owners_by_seed)
def test_many_small_groups_are_spread_over_all_workers(count, topics, seed):
    # Given many topics of one partition, all owned by whoever was there first
    workers = dict.fromkeys(NAMES[:count])
    lanes = [LaneId(f"topic-{number}", 0, "group") for number in range(topics)]
    for owners in ({}, dict.fromkeys(lanes, NAMES[0]), random_owners(lanes, seed)):
        # When they are assigned
        loads = Counter(assign(workers, lanes, owners).values())
        # Then the totals are even
        assert max(loads.values()) - min(loads[name] for name in workers) <= 1


@given(everybody, lanes, owners_by_seed)
def test_totals_are_even_where_everybody_serves_everything(workers, lanes, seed):
    loads = Counter(assign(workers, lanes, random_owners(lanes, seed)).values())
    if loads:
        assert max(loads.values()) - min(loads[name] for name in workers) <= 1


def test_nobody_loses_a_lane_that_fits_into_his_share():
    lanes = lanes_of({"orders/inventory": 8})
    owners = {lane: ("a", "b")[lane.partition % 2] for lane in lanes}
    assert assign({"a": None, "b": None}, lanes, owners) == owners


def test_an_extra_stays_with_whoever_has_it():
    lanes = lanes_of({"orders/inventory": 3})
    owners = {lanes[0]: "z", lanes[1]: "z", lanes[2]: "a"}
    assert assign({"a": None, "z": None}, lanes, owners) == owners


def test_taking_one_lane_changes_nothing_for_the_others():
    # Given a worker that took some of the lanes that should be its own, but not all yet
    lanes = lanes_of({"orders/inventory": 8})
    workers = {"a": None, "b": None, "c": None}
    wanted = assign(workers, lanes, {})
    for lane in lanes:
        assert assign(workers, lanes, {lane: wanted[lane]}) == wanted


def test_lanes_of_one_partition_are_divided_too():
    # Unordered groups have several lanes in a partition
    lanes = [LaneId("clicks", 0, "stats", f"lane-{number}") for number in range(4)]
    assert Counter(assign({"a": None, "b": None}, lanes, {}).values()) == {"a": 2, "b": 2}


def test_without_workers_nothing_is_assigned():
    assert assign({}, lanes_of({"orders/inventory": 3}), {}) == {}


# ---------------------------------------------------------------------- lanes that are declined


def random_declines(names, lanes: list[LaneId], owners, seed: int) -> dict[str, set[LaneId]]:
    """What busy workers may say that they decline: some of what they hold, what they have let go, nothing."""
    draw = random.Random(f"{seed} declines")
    declines = {}
    for name in sorted(names):
        held = [lane for lane in lanes if owners.get(lane) == name]
        some = draw.sample(held, draw.randint(0, len(held)))
        declines[name] = {*some, *draw.sample(lanes, min(len(lanes), draw.randint(0, 2)))}
    return declines


def free_hands(workers: Serves, lane: LaneId, declines) -> set[str]:
    """Those who serve the lane's group and are not busy."""
    return {name for name in eligible(workers, lane) if name not in declines}


@given(serving, lanes, owners_by_seed, decliners)
def test_with_declines_every_lane_still_goes_to_one_who_serves_it(workers, lanes, seed, names):
    owners = random_owners(lanes, seed)
    assigned = assign(workers, lanes, owners, random_declines(names, lanes, owners, seed))
    assert set(assigned) == {lane for lane in lanes if eligible(workers, lane)}
    assert all(worker in eligible(workers, lane) for lane, worker in assigned.items())


@given(serving, lanes, owners_by_seed, decliners)
def test_a_declined_lane_goes_to_somebody_who_is_not_busy_if_there_is_one(workers, lanes, seed, names):
    owners = random_owners(lanes, seed)
    declines = random_declines(names, lanes, owners, seed)
    for lane, worker in assign(workers, lanes, owners, declines).items():
        free = free_hands(workers, lane, declines)
        if free and lane in declines.get(owners.get(lane, ""), ()):
            assert worker in free
        if free:
            assert lane not in declines.get(worker, ())


@given(serving, lanes, owners_by_seed, decliners)
def test_a_busy_worker_gets_no_lane_that_it_does_not_hold(workers, lanes, seed, names):
    owners = random_owners(lanes, seed)
    declines = random_declines(names, lanes, owners, seed)
    for lane, worker in assign(workers, lanes, owners, declines).items():
        if worker in declines and free_hands(workers, lane, declines):
            assert owners.get(lane) == worker


@given(serving, lanes, owners_by_seed, decliners)
def test_a_busy_worker_keeps_what_it_holds_up_to_an_even_share(workers, lanes, seed, names):
    owners = random_owners(lanes, seed)
    declines = random_declines(names, lanes, owners, seed)
    assigned = assign(workers, lanes, owners, declines)
    for place in {(lane.topic, lane.group) for lane in assigned}:
        here = [lane for lane in lanes if (lane.topic, lane.group) == place]
        free = free_hands(workers, here[0], declines)
        counts = Counter(assigned[lane] for lane in here)
        held = Counter(
            owners[lane]
            for lane in here
            if lane in owners and lane not in declines.get(owners[lane], ()) and owners[lane] in workers
        )
        least = min((counts[name] for name in free), default=0)
        for name in set(eligible(workers, here[0])) - free if free else ():
            assert min(held[name], least) <= counts[name] <= min(held[name], least + 1)


@given(serving, lanes, owners_by_seed, decliners)
def test_those_who_are_not_busy_share_a_topic_and_group_evenly(workers, lanes, seed, names):
    owners = random_owners(lanes, seed)
    declines = random_declines(names, lanes, owners, seed)
    assigned = assign(workers, lanes, owners, declines)
    for place in {(lane.topic, lane.group) for lane in assigned}:
        counts = Counter(worker for lane, worker in assigned.items() if (lane.topic, lane.group) == place)
        shares = [counts[name] for name in free_hands(workers, LaneId(place[0], 0, place[1]), declines)]
        assert max(shares, default=0) - min(shares, default=0) <= 1


@given(serving, lanes, owners_by_seed, decliners)
def test_with_declines_the_order_of_the_tables_does_not_matter(workers, lanes, seed, names):
    owners = random_owners(lanes, seed)
    declines = random_declines(names, lanes, owners, seed)
    draw = random.Random(seed)
    shuffled = [dict(draw.sample(sorted(each.items()), len(each))) for each in (workers, owners, declines)]
    other_lanes = draw.sample(lanes, len(lanes))
    assert assign(shuffled[0], other_lanes, *shuffled[1:]) == assign(workers, lanes, owners, declines)


@given(serving, lanes, owners_by_seed, decliners)
def test_with_declines_an_assignment_that_is_carried_out_is_assigned_again(workers, lanes, seed, names):
    owners = random_owners(lanes, seed)
    declines = random_declines(names, lanes, owners, seed)
    assigned = assign(workers, lanes, owners, declines)
    assert assign(workers, lanes, assigned, declines) == assigned


@given(serving, lanes, owners_by_seed)
def test_where_all_are_busy_or_nobody_is_declines_change_nothing(workers, lanes, seed):
    owners = random_owners(lanes, seed)
    ordinary = assign(workers, lanes, owners)
    assert assign(workers, lanes, owners, {name: set(lanes) for name in workers}) == ordinary
    assert assign(workers, lanes, owners, dict.fromkeys(workers, ())) == ordinary
    assert assign(workers, lanes, owners, {}) == ordinary
    assert assign(workers, lanes, owners, {"dead-1": set(lanes)}) == ordinary


def test_a_busy_worker_passes_on_what_it_declines_and_nothing_else():
    lanes = lanes_of({"orders/inventory": 8})
    owners = {lane: ("a", "b")[lane.partition % 2] for lane in lanes}
    declined = {lanes[0], lanes[4]}
    assigned = assign({"a": None, "b": None}, lanes, owners, {"a": declined})
    assert {lane for lane in lanes if assigned[lane] != owners[lane]} == declined


def test_a_worker_that_is_busy_with_one_group_gets_no_lanes_of_another():
    # Given that nobody has the lanes of the second group yet
    lanes = lanes_of({"orders/inventory": 2, "clicks/stats": 4})
    owners = {lane: ("a", "b")[lane.partition] for lane in lanes if lane.topic == "orders"}
    assigned = assign({"a": None, "b": None}, lanes, owners, {"a": {LaneId("orders", 0, "inventory")}})
    assert set(assigned.values()) == {"b"}
