"""What a slice does with the messages in hand, whatever happens in a handler; Redis is made up here."""

from __future__ import annotations

import time
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.subscriptions import Subscription
from bus.errors import BusUnavailable, Reject, StaleLease
from bus.format import codec
from bus.format.keys import Keys
from bus.format.lane_id import LaneId
from bus.format.state import Failure
from bus.values import Message, RetryPolicy, id_pair
from workers.progress import InHand, Progress
from workers.slices import handling
from workers.slices.dispatch import Dispatcher
from workers.slices.handling import MAX_COUNT, PROVE_SECONDS, SETTLE_SECONDS, Handling

SLICE = 1.0

#: What a handler does besides taking its time.
DEEDS = (
    "fails",
    "is rejected",
    "loses its lease",
    "proves its lease",
    "drains",
    "revokes",
    "exits",
    "dies",
    "cuts",
)


class Turns:
    """Settles into a list; the link can break, and the lease of a lane can be somebody else's.

    As the real ones do, by the tests of `tests/integration/test_turns_contract.py`.
    """

    def __init__(self, world: World, lanes: list[Lane]) -> None:
        self._world = world
        self.lanes = lanes
        self.proved = world.now
        self.cut = False
        self.stolen: list[Lane] = []
        self.settled: list[tuple[str, int, str]] = []
        """(what became of it, partition, id)"""

    def settle(self) -> None:
        if not any(lane.acks or lane.outcomes for lane in self.lanes):
            return
        self.prove()
        for lane in self.lanes:
            ended = lane.outcomes
            self._note("done", lane, [*lane.acks, *ended.done])
            self._note("retry", lane, [each[0] for each in ended.retry])
            self._note("held", lane, [each[0] for each in ended.held])
            self._note("dead", lane, [each[0] for each in ended.dead])
            lane.acks = []
            lane.learn_settled([], 0, 0, -1)

    def _note(self, what: str, lane: Lane, ids: list[str]) -> None:
        self.settled += [(what, lane.id.partition, id) for id in ids]

    def prove(self) -> None:
        if self.cut:
            raise BusUnavailable("cut")
        for lane in self.lanes:
            lane.lost = lane in self.stolen
        self.lanes = [lane for lane in self.lanes if not lane.lost]
        if not self.lanes:
            raise StaleLease("no lane is left")
        self.proved = self._world.now

    def is_ours(self, lane: Lane) -> bool:
        try:
            self.prove()
        except (BusUnavailable, StaleLease):
            return False
        return not lane.lost

    def reopen(self) -> None:
        self.cut = False
        for lane in self.lanes:
            lane.recovering, lane.position = True, "-"
        self.prove()
        self.settle()

    def server_now(self) -> int:
        return int(self._world.now * 1000)


class World:
    """One slice over some lanes, a clock that stands still but in handlers, and what was handled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lanes: int = 1, ordering: Any = "key") -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(handling, "pause", lambda _seconds: None)
        self.progress = Progress(2)
        self.deeds: dict[tuple[int, str], tuple[str, float]] = {}
        self.ran: list[tuple[int, str]] = []
        self.shown: list[InHand | None] = []
        """What shared memory said was running, each time."""
        self.keys: dict[tuple[int, str], str | None] = {}
        self.at_start: dict[tuple[int, str], list[tuple[str, int, str]]] = {}
        """What was settled when a message began."""
        subscription = Subscription(
            topic="orders", group="g", handler=self._handler, ordering=ordering, retry=RetryPolicy(jitter=0)
        )
        self.dying = False
        dispatcher = Dispatcher(subscription, is_ending=lambda: self.dying)
        partitions = Keys("p")
        self.lanes = [
            Lane(
                LaneState(LaneId("orders", number, "g"), "me", ordering),
                partitions.partition("orders", number),
            )
            for number in range(lanes)
        ]
        self.turns = Turns(self, self.lanes)
        for lane in self.lanes:
            lane.recovering = False
            lane.prove = lambda lane=lane: self.turns.is_ours(lane)
        runtime: Any = SimpleNamespace(progress=self.progress, dispatcher=lambda _topic, _group: dispatcher)
        turns: Any = self.turns
        self.hand = Handling(runtime, turns, self.lanes, 0, None)
        self.hand.ends = self.now + SLICE
        self.hand.note_settled()

    def _handler(self, message: Message) -> None:
        place = message.partition, message.id
        self.ran.append(place)
        self.keys[place] = message.key
        self.at_start[place] = list(self.turns.settled)
        self.shown.append(self.progress.read(0).running)
        deed, seconds = self.deeds.get(place, ("", 0.0))
        self.now += seconds
        match deed:
            case "fails":
                raise ValueError("no")
            case "is rejected":
                raise Reject("never")
            case "loses its lease":
                self.turns.stolen.append(self.lanes[message.partition])
                message.lease_valid()
            case "sees another lane go":
                self.turns.stolen.append(self.lanes[-1])
                message.lease_valid()
            case "proves its lease":
                message.lease_valid()
            case "drains":
                self.progress.set_drain()
            case "revokes":
                self.progress.revoke(0)
            case "exits":
                raise SystemExit
            case "dies":
                self.dying = True
                raise SystemExit
            case "cuts":
                self.turns.cut = True

    def fetched(self, keys: list[list[str | None]]) -> list[tuple[Lane, list[Message]]]:
        """Messages 1-1, 1-2, … of each lane, with these keys."""
        return [
            (lane, lane.messages([[b"1-%d" % n, entry(key)] for n, key in enumerate(of_lane, 1)]))
            for lane, of_lane in zip(self.lanes, keys, strict=True)
        ]

    def ids(self, what: str, partition: int = 0) -> list[str]:
        return [id for said, where, id in self.turns.settled if (said, where) == (what, partition)]


def entry(key: str | None, value: bytes = b"1") -> list[bytes]:
    return [b"v", value] if key is None else [b"v", value, b"k", key.encode()]


deeds = st.tuples(st.just("") | st.sampled_from(DEEDS), st.sampled_from([0.0, 0.01, 0.15, 0.6, 6.0]))
keys = st.sampled_from(["a", "b", None])
lane_of_messages = st.lists(keys, max_size=8)


@given(
    st.sampled_from(["key", "partition", "none"]),
    st.lists(lane_of_messages, min_size=1, max_size=3),
    st.dictionaries(st.tuples(st.integers(0, 2), st.integers(1, 8).map(lambda n: f"1-{n}")), deeds),
    st.booleans(),
    st.integers(0, 9),
)
def test_whatever_happens_nothing_is_lost_or_run_twice_or_out_of_order(
    ordering, fetched, plan, failing_before, suspect
):
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World(monkeypatch, len(fetched), ordering)
        world.deeds = plan
        first = world.lanes[0]
        if failing_before and ordering != "none":
            first.failures["0-1"], first.failing["other"] = Failure("other", 1), {(0, 1)}
        if suspect > 6:
            first.suspect = (1, suspect - 6)
        batch = world.fetched(fetched)
        exited = gave_up = False
        try:
            world.hand.handle(batch)
            world.hand.on_line(world.turns.settle)
        except SystemExit:
            exited = True
        except (BusUnavailable, StaleLease):
            gave_up = True

        # Each ran once, in order, and only what ran is settled, as what it came to be
        assert len(set(world.ran)) == len(world.ran)
        assert [running and running[:2] for running in world.shown] == world.ran
        for partition in range(len(fetched)):
            ran = [id_pair(id) for where, id in world.ran if where == partition]
            assert ran == sorted(ran)
        became = defaultdict(list)
        for what, partition, id in world.turns.settled:
            became[partition, id].append(what)
        failed = {"fails": "retry", "exits": "retry", "is rejected": "dead"}
        for place, said in became.items():
            deed = plan.get(place, ("", 0.0))[0]
            assert said == ["held"] if place not in world.ran else said == [failed.get(deed, "done")]
        # Nothing of a key ran after one of it had failed
        if ordering == "key":
            for place in world.ran:
                before = [each for each in world.ran[: world.ran.index(place)] if each[0] == place[0]]
                same = [each for each in before if world.keys[each] == world.keys[place] is not None]
                assert all(failed.get(plan.get(each, ("", 0.0))[0]) != "retry" for each in same)
        if exited:
            # What is left in shared memory is exact: the one that died runs, those before it have ended
            view = world.progress.read(0)
            assert view.running is not None
            assert (view.running.lane_index, view.running.id) == world.ran[-1]
            unsettled = [
                place
                for place in world.ran[:-1]
                if place not in became and plan.get(place, ("", 0.0))[0] not in failed
            ]
            lost = {number for number, lane in enumerate(world.lanes) if lane.lost}
            assert [each for each in view.finished if each[0] not in lost] == [
                each for each in unsettled if each[0] not in lost
            ]
            refused = [place for place in world.ran[:-1] if plan.get(place, ("", 0.0))[0] in failed]
            assert [
                (lane, *orjson.loads(record)[:2]) for lane, record in view.refused if lane not in lost
            ] == [
                (lane, failed[plan[lane, id][0]], id)
                for lane, id in refused
                if (lane, id) not in became and lane not in lost
            ]
        elif not gave_up:
            # Nothing is without a trace: settled, or looked for again, or another worker's
            for lane, messages in batch:
                if not (lane.lost or lane.recovering):
                    assert all(became[lane.id.partition, each.id] for each in messages)


def test_one_that_fails_in_the_middle_leaves_the_others_to_be_run_once(monkeypatch):
    world = World(monkeypatch)
    world.deeds = {(0, "1-2"): ("fails", 0), (0, "1-4"): ("is rejected", 0)}
    world.hand.handle(world.fetched([["a", "b", "c", "d", "e"]]))
    world.turns.settle()
    assert [id for _, id in world.ran] == ["1-1", "1-2", "1-3", "1-4", "1-5"]
    assert (world.ids("done"), world.ids("retry"), world.ids("dead")) == (
        ["1-1", "1-3", "1-5"],
        ["1-2"],
        ["1-4"],
    )


@pytest.mark.parametrize("last", ["1-1", "1-2", "1-3"])
def test_after_a_handler_has_found_the_lease_lost_nothing_more_is_begun(monkeypatch, last):
    world = World(monkeypatch)
    world.deeds = {(0, last): ("loses its lease", 0)}
    world.hand.handle(world.fetched([["a", "b", "c"]]))
    assert world.progress.read(0).running is None
    world.turns.settle()
    assert world.ran[-1] == (0, last)
    assert world.turns.settled == []


@pytest.mark.parametrize("failing", [False, True], ids=["smooth", "with one that fails"])
def test_a_slow_message_is_settled_before_the_next_one_begins(monkeypatch, failing):
    world = World(monkeypatch, 2)
    world.hand.ends = world.now + 100
    if failing:
        for lane in world.lanes:
            lane.failures["0-1"], lane.failing["other"] = Failure("other", 1), {(0, 1)}
    world.deeds = {(0, "1-1"): ("", 10.0), (0, "1-2"): ("", 10.0), (1, "1-1"): ("", SETTLE_SECONDS + 0.01)}
    world.hand.handle(world.fetched([["a", "b"], ["a", "b"]]))
    assert world.at_start == {
        (0, "1-1"): [],
        (0, "1-2"): [("done", 0, "1-1")],
        (1, "1-1"): [("done", 0, "1-1"), ("done", 0, "1-2")],
        (1, "1-2"): [("done", 0, "1-1"), ("done", 0, "1-2"), ("done", 1, "1-1")],
    }


@pytest.mark.parametrize("failing", [False, True], ids=["smooth", "with one that fails"])
def test_the_leases_are_proven_before_a_message_when_that_was_long_ago(monkeypatch, failing):
    world = World(monkeypatch)
    world.hand.ends = world.now + 100
    if failing:
        world.lanes[0].failures["0-1"], world.lanes[0].failing["other"] = Failure("other", 1), {(0, 1)}
    world.turns.proved = world.now - PROVE_SECONDS + 0.05
    world.deeds = {(0, "1-2"): ("", 0.1)}
    world.turns.stolen.append(world.lanes[0])
    with pytest.raises(StaleLease):  # it was the last lane, which ends the slice
        world.hand.handle(world.fetched([["a", "b", "c", "d"]]))
    assert world.ran == [(0, "1-1"), (0, "1-2")]
    assert world.lanes[0].lost


@pytest.mark.parametrize("failing", [False, True], ids=["smooth", "with one that fails"])
def test_no_message_begins_after_the_end_of_the_slice_and_what_was_not_run_is_looked_for(
    monkeypatch, failing
):
    world = World(monkeypatch)
    if failing:
        world.lanes[0].failures["0-1"], world.lanes[0].failing["other"] = Failure("other", 1), {(0, 1)}
    world.hand.ends = world.now + SETTLE_SECONDS / 4
    world.deeds = {(0, "1-2"): ("", SETTLE_SECONDS / 2)}
    world.hand.handle(world.fetched([["a", "b", "c", "d"]]))
    assert world.ran == [(0, "1-1"), (0, "1-2")]
    assert world.hand.cut_short
    assert world.lanes[0].recovering


def test_what_is_left_over_is_decoded_only_while_it_shows_as_running(monkeypatch):
    # What kills a process while it is decoded must be seen as what did that
    world = World(monkeypatch)
    world.lanes[0].recovering = True
    seen = []

    def decode(fields):
        running = world.progress.read(0).running
        seen.append(running and running.id)
        return codec.decode(fields)

    messages = [Message("orders", 0, f"1-{n}", entry("a"), decode) for n in (1, 2)]
    world.hand.handle([(world.lanes[0], messages)])
    assert seen == ["1-1", "1-2"]


def test_messages_that_take_long_to_decode_come_in_small_batches(monkeypatch):
    world = World(monkeypatch)
    loads = orjson.loads

    def slow(value):
        world.now += len(value) / 1e6 * 0.03
        return loads(value)

    monkeypatch.setattr(orjson, "loads", slow)
    large = b'"' + b"x" * 1_000_000 + b'"'
    messages = world.lanes[0].messages([[b"1-%d" % n, entry("a", large)] for n in range(1, 4)])
    world.hand.handle([(world.lanes[0], messages)])
    assert world.hand.count() == 3
    small = world.lanes[0].messages([[b"2-%d" % n, entry("a")] for n in range(1, 4)])
    for _ in range(40):
        world.hand.handle([(world.lanes[0], small)])
    assert world.hand.count() == MAX_COUNT


def test_a_lane_whose_loss_was_seen_in_another_is_neither_run_nor_counted_as_finished(monkeypatch):
    world = World(monkeypatch, lanes=2)
    world.deeds[0, "1-1"] = "sees another lane go", 0.0
    world.hand.handle(world.fetched([["a", "b"], ["a", "b"]]))
    assert world.ran == [(0, "1-1"), (0, "1-2")]
    assert world.progress.read(0).finished == world.ran
    assert world.lanes[1].recovering
