"""What the thread that watches Celery's main loop does when it stands still."""

from __future__ import annotations

import logging

import pytest

from tests.waiting import wait_until
from workers import loop_watch
from workers.loop_watch import (
    HOPELESS_COLD_SECONDS,
    HOPELESS_SECONDS,
    HOPELESS_STOPPING_SECONDS,
    STANDING_SECONDS,
    LoopWatch,
)


class World:
    def __init__(self):
        self.now = 1000.0
        self.changes = 0
        self.busy = False
        self.ended = []
        self.loop = LoopWatch(self._changed, lambda: self.busy, end=self.ended.append, clock=lambda: self.now)

    def _changed(self):
        self.changes += 1

    def pass_time(self, seconds, *, turning=False):
        ends = self.now + seconds
        while self.now < ends:
            self.now += 1
            if turning:
                self.loop.note_round()
            self.loop.look()


@pytest.fixture
def world():
    return World()


def test_a_loop_that_turns_is_left_alone(world):
    world.pass_time(300, turning=True)
    assert (world.loop.standing, world.changes, world.ended) == (False, 0, [])


def test_a_loop_that_cannot_be_looked_at_is_told_of_once_a_minute_and_looked_at_again(
    world, caplog, monkeypatch
):
    monkeypatch.setattr(loop_watch, "LOOK_SECONDS", 0.001)
    looks = []

    def fail():
        world.now += 1
        looks.append(world.now)
        raise OSError("no stack")

    monkeypatch.setattr(world.loop, "look", fail)
    world.loop.start()
    wait_until(lambda: len(looks) > 90, what="the looks of a minute and a half")
    world.loop.stop()
    world.loop.join(10)
    assert [record.levelname for record in caplog.records][:2] == ["ERROR", "ERROR"]
    assert len(caplog.records) < len(looks) / 40


def test_a_loop_that_stands_still_is_said_with_its_place_and_so_is_its_return(world, caplog):
    caplog.set_level(logging.WARNING)
    world.pass_time(STANDING_SECONDS + 1)
    assert (world.loop.standing, world.changes) == (True, 1)
    assert "test_loop_watch.py" in caplog.text
    world.pass_time(3)
    assert world.changes == 1
    world.pass_time(2, turning=True)
    assert (world.loop.standing, world.changes) == (False, 2)
    assert "goes on" in caplog.text


def test_a_process_that_was_frozen_is_no_loop_that_stands_still(world):
    world.pass_time(3, turning=True)
    world.now += 600
    world.loop.look()
    assert not world.loop.standing
    world.pass_time(STANDING_SECONDS + 1)
    assert world.loop.standing


def test_the_process_ends_when_its_loop_does_not_come_back_and_no_handler_is_at_work(world):
    world.busy = True
    world.pass_time(HOPELESS_SECONDS + 10)
    assert world.ended == []
    world.busy = False
    world.pass_time(1)
    assert world.ended[0] == 1


def test_a_warm_stop_may_take_its_time(world):
    world.loop.note_stop("Warm")
    world.pass_time(3600)
    assert world.ended == []


def test_a_cold_stop_that_hangs_ends_whoever_is_at_work(world):
    world.busy = True
    world.loop.note_stop("Cold")
    world.pass_time(HOPELESS_COLD_SECONDS)
    assert world.ended == []
    world.pass_time(2)
    assert world.ended[0] == 1


def test_a_warm_stop_becomes_a_cold_one_and_a_cold_one_stays_so(world):
    world.busy = True
    world.loop.note_stop("Warm")
    world.pass_time(3600)
    assert world.ended == []
    world.loop.note_stop("Cold")
    world.pass_time(HOPELESS_COLD_SECONDS / 2)
    world.loop.note_stop("Cold")
    world.loop.note_stop("Warm")
    assert world.ended == []
    world.pass_time(HOPELESS_COLD_SECONDS / 2 + 2)
    assert world.ended[0] == 1


def test_once_the_pool_has_ended_a_wait_for_the_broker_ends_whatever_was_left_in_shared_memory(
    world, monkeypatch
):
    monkeypatch.setattr(loop_watch, "_BROKER", ("test_loop_watch",))
    world.busy = True
    world.loop.note_stop("Warm")
    world.loop.note_pool_end()
    world.pass_time(HOPELESS_STOPPING_SECONDS)
    assert world.ended == []
    world.pass_time(2)
    assert world.ended[0] == 1


def test_a_stop_that_waits_for_the_broker_ends_when_no_handler_is_at_work(world, monkeypatch):
    monkeypatch.setattr(loop_watch, "_BROKER", ("test_loop_watch",))
    world.busy = True
    world.loop.note_stop("Warm")
    world.pass_time(HOPELESS_STOPPING_SECONDS + 10)
    assert world.ended == []
    world.busy = False
    world.pass_time(1)
    assert world.ended[0] == 1
