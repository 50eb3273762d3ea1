"""When a worker begins to decline lanes, and how long it is busy."""

from __future__ import annotations

import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.format.lane_id import ORDERED_LANE, LaneId
from bus.format.worker_record import load_lane
from workers.membership.declines import DECLINE_SECONDS, PATIENCE_SECONDS, REST_SECONDS, Declines

ONE, TWO = LaneId("orders", 0, "stock"), LaneId("orders", 1, "stock")


class World:
    def __init__(self):
        self.now = 1000.0
        self.declines = Declines(lambda: self.now)

    def see(self, waiting=None, *, at_rest=False):
        self.declines.see(waiting or {}, at_rest=at_rest)
        return self.declines.lanes

    def busy(self, waiting=None, *, at_rest=False):
        self.see(waiting, at_rest=at_rest)
        return self.declines.busy


@pytest.fixture
def world():
    return World()


def test_a_lane_is_declined_once_it_has_waited_for_ten_seconds_and_no_sooner(world):
    assert world.see({ONE: DECLINE_SECONDS - 0.01, TWO: 0.0}) == set()
    assert not world.declines.busy
    assert world.see({ONE: DECLINE_SECONDS, TWO: 0.01}) == {ONE}
    assert world.declines.busy


def test_a_lane_that_got_a_slot_is_declined_no_more_while_its_worker_is_still_busy(world):
    world.see({ONE: 11.0, TWO: 12.0})
    assert world.see({TWO: 13.0}) == {TWO}
    assert world.see({ONE: 2.0}) == set()
    assert world.declines.busy


def test_a_worker_is_busy_until_it_is_at_rest_and_not_before_some_time_has_passed(world):
    world.see({ONE: 11.0})
    world.now += REST_SECONDS - 0.01
    assert world.busy(at_rest=True)
    world.now += 0.01
    assert world.busy(at_rest=False)
    assert not world.busy(at_rest=True)


def test_the_time_begins_anew_whenever_a_lane_is_starved(world):
    world.see({ONE: 11.0})
    world.now += REST_SECONDS - 1
    world.see({ONE: 40.0})
    world.now += REST_SECONDS - 1
    assert world.busy(at_rest=True)
    world.now += 1
    assert not world.busy(at_rest=True)


def test_a_worker_that_was_busy_can_be_so_again(world):
    world.see({ONE: 11.0})
    world.now += REST_SECONDS
    world.see(at_rest=True)
    assert world.see({TWO: 11.0}) == {TWO}
    assert world.declines.busy


def test_the_next_look_comes_when_a_lane_that_is_not_declined_yet_will_be_starved(world):
    assert world.declines.next_look({}) == math.inf
    assert world.declines.next_look({ONE: 3.0, TWO: 4.0}) == DECLINE_SECONDS - 4.0
    assert world.declines.next_look({ONE: 99.0}) == 0.0
    world.see({TWO: 11.0})
    assert world.declines.next_look({ONE: 3.0, TWO: 12.0}) == DECLINE_SECONDS - 3.0
    assert world.declines.next_look({TWO: 12.0}) == math.inf


def test_lanes_that_are_starved_one_after_the_other_do_not_cost_a_look_each(world):
    world.see({TWO: 11.0})
    assert world.declines.next_look({ONE: DECLINE_SECONDS - 0.01}) == PATIENCE_SECONDS


names = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)


@given(st.sets(st.builds(LaneId, names, st.integers(0, 1023), names, st.just(ORDERED_LANE)), min_size=1))
def test_lanes_come_out_of_a_beat_as_they_went_in(lanes):
    declines = Declines(lambda: 0.0)
    declines.see(dict.fromkeys(lanes, DECLINE_SECONDS), at_rest=False)
    assert set(map(load_lane, orjson.loads(orjson.dumps(declines.dump())))) == lanes


def test_a_beat_tells_a_busy_worker_that_declines_nothing_from_one_that_is_not_busy(world):
    assert world.declines.dump() is None
    world.see({ONE: 11.0})
    world.see()
    assert world.declines.dump() == []
