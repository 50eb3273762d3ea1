"""What the parent reads of a pool process, above all after its death."""

from __future__ import annotations

import os
import signal
import time

import pytest

from workers.order import MAX_LANES
from workers.progress import MAX_FINISHED, Progress, Report

BIG = 2**64 - 1


def test_a_new_slot_is_empty():
    view = Progress(2).read(1)
    assert (view.pid, view.running, view.is_batch, view.finished, view.reports) == (0, None, False, [], [])
    assert (view.client_id, view.handler_ns) == (0, 0.0)


def test_the_running_message_is_seen_with_the_time_it_began():
    progress, before = Progress(2), time.monotonic()
    progress.running(1, 63, BIG, BIG)
    running = progress.read(1).running
    assert running is not None
    assert running[:3] == (63, BIG, BIG)
    assert before <= running.since <= time.monotonic()
    assert progress.read(0).running is None


def test_a_finished_message_runs_no_more():
    progress = Progress(1)
    progress.running(0, 2, 100, 1)
    progress.finished(0, 2, 100, 1)
    progress.running(0, 3, 100, 2)
    view = progress.read(0)
    assert view.finished == [(2, 100, 1)]
    assert view.running is not None
    assert view.running[:3] == (3, 100, 2)


def test_a_failed_message_neither_runs_nor_is_finished():
    progress = Progress(1)
    progress.running(0, 2, 100, 1)
    progress.stopped(0)
    assert progress.read(0).running is None
    assert progress.read(0).finished == []


def test_a_batch_runs_as_a_whole():
    progress = Progress(1)
    progress.batch_running(0, 1, (100, 1), (200, 7))
    view = progress.read(0)
    assert view.running is not None
    assert view.running[:3] == (1, 100, 1)
    assert (view.is_batch, view.batch_end) == (True, (200, 7))
    progress.running(0, 1, 300, 0)
    assert progress.read(0).batch_end is None


def test_a_settled_turn_leaves_nothing_behind():
    progress = Progress(1)
    progress.finished(0, 0, 100, 1)
    progress.running(0, 0, 100, 2)
    progress.settled(0)
    view = progress.read(0)
    assert (view.running, view.finished) == (None, [])


def test_finished_messages_beyond_the_room_are_not_recorded():
    progress = Progress(2)
    progress.running(1, 5, 7, 7)
    for number in range(MAX_FINISHED + 10):
        progress.finished(0, 1, 100, number)
    assert progress.read(0).finished == [(1, 100, number) for number in range(MAX_FINISHED)]
    assert progress.read(1).running is not None
    assert progress.read(1).finished == []


def test_reports_are_kept_by_lane():
    progress = Progress(1)
    progress.report(0, MAX_LANES - 1, 3, BIG, BIG, 2**62)
    progress.report(0, 0, 1, 10, 2, -1)
    progress.report(0, 0, 2, 11, 0, 0)
    assert progress.read(0).reports == [
        Report(0, 2, 11, 0, 0),
        Report(MAX_LANES - 1, 3, BIG, BIG, 2**62),
    ]


def test_drain_is_seen_by_every_slot():
    progress = Progress(3)
    assert not progress.draining
    assert not progress.stopping(2)
    progress.set_drain()
    assert progress.draining
    assert all(progress.stopping(slot) for slot in range(3))


def test_a_revoked_slot_alone_stops():
    progress = Progress(2)
    progress.revoke(1)
    assert progress.revoked(1)
    assert progress.stopping(1)
    assert not progress.revoked(0)
    assert not progress.stopping(0)


def test_a_slot_can_be_wanted():
    progress = Progress(2)
    progress.want(0)
    assert (progress.wanted(0), progress.wanted(1)) == (True, False)


def test_the_connection_is_known_only_while_it_lingers():
    progress = Progress(1)
    progress.waiting(0, 4711)
    assert progress.read(0).client_id == 4711
    progress.awake(0)
    assert progress.read(0).client_id == 0


def test_the_beginning_of_a_slice_keeps_what_the_parent_said_since_it_was_sent():
    progress = Progress(1)
    progress.report(0, 4, 1, 1, 1, 0)
    progress.finished(0, 0, 1, 1)
    progress.revoke(0)
    progress.want(0)
    progress.begin(0, 99)
    view = progress.read(0)
    assert (view.pid, view.reports, view.finished) == (99, [], [])
    assert progress.revoked(0)
    assert progress.wanted(0)


def test_a_cleared_slot_is_like_a_new_one():
    progress = Progress(1)
    progress.begin(0, 99)
    progress.running(0, 1, 2, 3)
    progress.finished(0, 1, 2, 3)
    progress.batch_running(0, 1, (2, 3), (2, 9))
    progress.report(0, 1, 1, 1, 1, 1)
    progress.waiting(0, 5)
    progress.set_handler_ns(0, 1234.5)
    progress.revoke(0)
    progress.want(0)
    assert progress.handler_ns(0) == 1234.5
    progress.clear(0)
    assert progress.read(0) == Progress(1).read(0)
    assert not progress.stopping(0)
    assert not progress.wanted(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_after_a_kill_the_parent_knows_what_ran_and_what_was_finished():
    # Given a child that has finished two messages and runs a third
    progress, (ready, say_ready) = Progress(2), os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - the child never returns
        progress.begin(1, os.getpid())
        for seq in (1, 2):
            progress.running(1, 3, 500, seq)
            progress.finished(1, 3, 500, seq)
        progress.set_handler_ns(1, 5e6)
        progress.running(1, 3, 500, 3)
        os.write(say_ready, b"x")
        while True:
            signal.pause()
    # When it is killed
    assert os.read(ready, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # Then everything is known
    view = progress.read(1)
    assert view.pid == child
    assert view.finished == [(3, 500, 1), (3, 500, 2)]
    assert view.running is not None
    assert view.running[:3] == (3, 500, 3)
    assert view.handler_ns == 5e6
    for end in (ready, say_ready):
        os.close(end)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_whenever_a_child_is_killed_no_message_is_called_finished_that_is_not():
    # Given a child that handles messages 0, 1, 2, … as fast as it can, and settles every 700;
    # ms and seq of a message are equal, so a record of two halves shows
    for round_number in range(10):
        progress = Progress(1)
        child = os.fork()
        if child == 0:  # pragma: no cover - the child never returns
            number = 1
            while True:
                progress.running(0, 0, number, number)
                progress.finished(0, 0, number, number)
                if number % 700 == 0:
                    progress.settled(0)
                number += 1
        # When the parent reads on, and kills it at any moment
        latest, deadline = 0, time.monotonic() + 30
        while latest < 3000 * (round_number + 1):
            assert time.monotonic() < deadline
            finished = progress.read(0).finished
            assert_whole(finished)
            latest = max([latest, *(ms for _, ms, _ in finished)])
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # Then all that is finished came before what runs
        view = progress.read(0)
        assert_whole(view.finished)
        if view.running is not None and view.finished:
            assert view.running.ms == view.running.seq > view.finished[-1][1]


def assert_whole(finished: list[tuple[int, int, int]]) -> None:
    numbers = [ms for _, ms, _ in finished]
    assert all(lane == 0 and ms == seq for lane, ms, seq in finished)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
