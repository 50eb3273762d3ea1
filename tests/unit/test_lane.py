"""What one lane knows of its messages, without a server."""

from __future__ import annotations

from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.waiting import Waiting
from bus.format import codec
from bus.format.keys import Keys
from bus.format.lane_id import LaneId
from bus.values import Message


def a_lane() -> Lane:
    lane = Lane(LaneState(LaneId("orders", 0, "ledger"), "a:1", "key"), Keys("t").partition("orders", 0))
    lane.load(Waiting([], [], 0))
    lane.end_recovery()
    return lane


def message(number: int, key: bytes = b"a") -> Message:
    return Message("orders", 0, f"1-{number}", [b"v", b"1", b"k", key], codec.decode, 1, None)


def test_messages_that_are_held_back_in_this_turn_count_towards_the_held_limit_of_its_fetch() -> None:
    # Given a lane below its limit, whose last settled turn left nothing waiting
    lane = a_lane()
    assert lane.may_fetch(10)

    # When a key fails, and later messages of it are held back
    lane.retry(message(1), 1.0, "boom", 0)
    for number in range(2, 10):
        lane.hold(message(number))
    assert lane.may_fetch(10)
    lane.hold(message(10))

    # Then the turn that settles them does not fetch any more
    assert not lane.may_fetch(10)

    # And it is so, too, once they are settled, until fewer wait
    lane.learn_settled([], 1, 9, 0)
    assert not lane.may_fetch(10)
    lane.learn_settled([], 1, 8, 0)
    assert lane.may_fetch(10)


def test_one_that_killed_a_process_while_it_was_held_back_holds_nobody_back_once_it_is_done() -> None:
    lane = a_lane()
    lane.blame("2-0", "worker lost", 5, 1)  # nobody knows then what it is tied to
    lane.learn_settled([[b"2-0", b"h"], [b"3-0", b"h"]], 2, 0, -1)

    lane.done_id("2-0")
    lane.done_id("3-0")

    assert lane.failing == {"h": set()}
    assert lane.outcomes.release == ["h"]
