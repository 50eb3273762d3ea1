"""When a worker begins to decline lanes, and when it stops."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.lane import LaneId
from workers.declines import DECLINE_SECONDS, REST_SECONDS, Declines, from_text, to_text

ONE, TWO = LaneId("orders", 0, "stock"), LaneId("orders", 1, "stock")


class World:
    def __init__(self):
        self.now = 1000.0
        self.declines = Declines(lambda: self.now)

    def see(self, waiting=None, *, at_rest=False):
        self.declines.see(waiting or {}, at_rest=at_rest)
        return self.declines.lanes


@pytest.fixture
def world():
    return World()


def test_a_lane_is_declined_once_it_has_waited_for_ten_seconds_and_no_sooner(world):
    assert world.see({ONE: DECLINE_SECONDS - 0.01, TWO: 0.0}) == set()
    assert world.see({ONE: DECLINE_SECONDS, TWO: 0.01}) == {ONE}


def test_what_was_declined_stays_so_when_it_is_gone_and_others_follow(world):
    world.see({ONE: 11.0})
    assert world.see() == {ONE}
    assert world.see({TWO: 11.0}) == {ONE, TWO}


def test_declining_ends_at_rest_and_not_before_some_time_has_passed(world):
    world.see({ONE: 11.0})
    world.now += REST_SECONDS - 0.01
    assert world.see(at_rest=True) == {ONE}
    world.now += 0.01
    assert world.see(at_rest=False) == {ONE}
    assert world.see(at_rest=True) == set()


def test_the_time_begins_anew_whenever_a_lane_is_starved(world):
    world.see({ONE: 11.0})
    world.now += REST_SECONDS - 1
    world.see({ONE: 40.0})
    world.now += REST_SECONDS - 1
    assert world.see(at_rest=True) == {ONE}
    world.now += 1
    assert world.see(at_rest=True) == set()


def test_a_worker_that_was_busy_can_be_so_again(world):
    world.see({ONE: 11.0})
    world.now += REST_SECONDS
    world.see(at_rest=True)
    assert world.see({TWO: 11.0}) == {TWO}


def test_the_next_look_comes_when_a_lane_that_is_not_declined_yet_will_be_starved(world):
    assert world.declines.next_look({}) == math.inf
    assert world.declines.next_look({ONE: 3.0, TWO: 4.0}) == DECLINE_SECONDS - 4.0
    world.see({TWO: 11.0})
    assert world.declines.next_look({ONE: 3.0, TWO: 12.0}) == DECLINE_SECONDS - 3.0
    assert world.declines.next_look({ONE: 99.0}) == 0.0


names = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)


@given(names, st.integers(0, 1023), names)
def test_a_lane_comes_out_of_a_beat_as_it_went_in(topic, partition, group):
    lane = LaneId(topic, partition, group)
    assert from_text(to_text(lane)) == lane
