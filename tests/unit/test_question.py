"""What a turn asks follows from its lanes and settings alone, and asking changes none of them."""

from __future__ import annotations

import math

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.consuming import question
from bus.consuming.asked import Asked
from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.portions import PORTION
from bus.consuming.sizes import MOST_BYTES
from bus.format.keys import Keys
from bus.format.lane_id import LaneId
from bus.format.state import Failure
from bus.streams.commands import script
from bus.streams.wire import pack_all

#: On a machine that has much else to do it takes long to make examples.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NOW = 1_000_000
HELD_LIMIT = 50

#: The script → its name, as EVALSHA says it.
NAMES = {script(name).sha: name for name in ("turn", "recover", "due")}

#: Ids of messages: of one turn none, some, or more than one script settles.
ids = st.sampled_from([[], ["2-1"], [f"2-{number}" for number in range(PORTION + 5)]])


@st.composite
def a_lane(draw: st.DrawFn, partition: int) -> Lane:
    """A lane in any state in which a slice may have it between two turns."""
    ordering = draw(st.sampled_from(["key", "partition", "none"]))
    id = LaneId("orders", partition, "g")
    lane = Lane(LaneState(id, "me:1", ordering), Keys("p").partition("orders", partition))
    lane.recovering = draw(st.booleans())
    lane.position = draw(st.sampled_from(["-", "1-5"]))
    lane.last_id = draw(st.sampled_from([None, "1-7"]))
    lane.marked = draw(st.sampled_from([None, "1-6", "1-7"]))
    lane.closed = draw(st.booleans())
    lane.next_due = draw(st.sampled_from([None, 0, NOW, NOW + 1]))
    lane.suspect = draw(st.sampled_from([None, (1, 9)]))
    lane.held = draw(st.sampled_from([0, HELD_LIMIT - 1, HELD_LIMIT]))
    if draw(st.booleans()):
        lane.failures["1-1"], lane.failing["h"] = Failure("h", 1), {(1, 1)}
    lane.acks = draw(ids)
    lane.outcomes.retry = [(message_id, 10, "{}") for message_id in draw(ids)]
    lane.outcomes.dead = [(message_id, "no", "no", 1, 1) for message_id in draw(ids)]
    return lane


lanes_of_a_slice = st.integers(0, 3).flatmap(lambda many: st.tuples(*[a_lane(n) for n in range(many)]))

#: Everything else that the question depends on; `some`: which of the lanes may fetch now.
choices = st.fixed_dictionaries(
    {
        "count": st.sampled_from([0, 1, 2, 20, 500, 2000]),
        "some": st.integers(0, 3),
        "drain_only": st.booleans(),
        "marking": st.booleans(),
    }
)


def ask(lanes: tuple[Lane, ...], count: int, some: int, drain_only: bool, marking: bool) -> Asked:
    return question.question(
        lanes, fetch_from=lanes[some:] or lanes, count=count, now=NOW, held_limit=HELD_LIMIT, dead_limit=7,
        drain_only=drain_only, marking=marking,
    )  # fmt: skip


def state_of(lane: Lane) -> dict[str, str]:
    return {name: repr(getattr(lane, name)) for name in Lane.__slots__}


@unhurried
@given(lanes_of_a_slice, choices)
def test_asking_changes_no_lane_and_asks_the_same_again(lanes, chosen):
    before = [state_of(lane) for lane in lanes]
    asked = ask(lanes, **chosen)
    packed = pack_all(question.commands(asked))
    assert [state_of(lane) for lane in lanes] == before
    assert pack_all(question.commands(ask(lanes, **chosen))) == packed


@unhurried
@given(lanes_of_a_slice, choices)
def test_each_lane_fetches_in_the_one_way_that_is_its_turn(lanes, chosen):
    asked = ask(lanes, **chosen)
    may_fetch = lanes[chosen["some"] :] or lanes
    for lane in lanes:
        is_due = lane.next_due is not None and lane.next_due <= NOW
        if not chosen["count"] or lane not in may_fetch:
            way = None
        elif lane.recovering:
            way = asked.recovering
        elif chosen["drain_only"]:
            way = None
        elif is_due:
            way = asked.due
        else:
            way = asked.reading if lane.may_fetch(HELD_LIMIT) else None
        ways = (asked.recovering, asked.due, asked.reading)
        assert [each is way for each in ways] == [lane in each for each in ways]
    for lane in asked.reading:
        assert not lane.closed
        assert lane.held < HELD_LIMIT
        assert not (lane.ordering == "partition" and lane.failing)
    assert asked.most_new * max(1, len(may_fetch)) <= max(chosen["count"], len(may_fetch), 1)
    assert 1 <= asked.most_waiting <= question.WAITING_A_TURN
    reads_many = asked.most_new * len(asked.reading) > 1
    assert asked.most_bytes == (MOST_BYTES if reads_many else math.inf)


@unhurried
@given(lanes_of_a_slice, choices)
def test_all_that_is_kept_is_settled_in_its_order_in_portions_and_marks_come_last(lanes, chosen):
    asked = ask(lanes, **chosen)
    for lane in lanes:
        first = [part for of, part in asked.first_portions if of is lane]
        last = [part for of, part in asked.last_portions if of is lane]
        assert len(last) == bool(lane.outcomes)
        assert all(len(part.dead) + len(part.retry) <= PORTION for part in [*first, *last])
        assert [item for part in [*first, *last] for item in part.dead] == lane.outcomes.dead
        assert [item for part in [*first, *last] for item in part.retry] == lane.outcomes.retry
    assert asked.acking == [lane for lane in lanes if lane.acks]
    for lane, mark in asked.marks.items():
        assert chosen["count"]
        assert chosen["marking"]
        assert mark == lane.last_id != lane.marked
        assert not lane.recovering
        assert lane.ordering != "none"


@unhurried
@given(lanes_of_a_slice, choices)
def test_the_commands_are_scripts_then_one_fenced_multi_then_scripts(lanes, chosen):
    asked = ask(lanes, **chosen)
    commands = question.commands(asked)
    words = [NAMES[each[1]] if each[0] == "EVALSHA" else each[0] for each in commands]
    multi = ["MULTI", *["XACK"] * len(asked.acking), *["SET"] * len(asked.marks)]
    multi += [*["XREADGROUP"] * bool(asked.reading), "EXEC", "WATCH", "MGET"]
    assert words == [
        *["turn"] * len(asked.last_portions),
        *(multi if asked.acking or asked.reading else []),
        *["recover"] * len(asked.recovering),
        *["due"] * len(asked.due),
    ]
    # A mark comes with the last script of its lane, or else in the MULTI
    for (lane, _), command in zip(asked.last_portions, commands, strict=False):
        assert command[-1] == asked.marks.get(lane, "")
    # The fence is around all lanes, also those that neither acknowledge nor fetch
    leases = [lane.keys.lease("g", "0") for lane in lanes]
    assert all(list(each[1:]) == leases for each in commands if each[0] in ("WATCH", "MGET"))
    acked = {each[1]: list(each[3:]) for each in commands if each[0] == "XACK"}
    assert acked == {lane.keys.stream: lane.acks for lane in lanes if lane.acks}
