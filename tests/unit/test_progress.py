"""What the parent reads of a pool process, above all after its death."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bus.format import codec
from bus.values import Message
from workers.order import MAX_LANES
from workers.progress import MAX_FINISHED, RECORD_BYTES, Progress
from workers.slot_view import InHand, LaneReport

BIG = 2**64 - 1
LONGEST = f"{BIG}-{BIG}".encode()
ROOT = Path(__file__).parents[2]


def test_a_new_slot_is_empty():
    view = Progress(2).read(1)
    assert (view.pid, view.running, view.batch_end, view.finished, view.reports) == (0, None, None, [], [])
    assert (view.client_id, view.handler_ns) == (0, 0.0)


def test_the_running_message_is_seen_with_the_time_it_began():
    progress = Progress(2)
    progress.running(1, 63, LONGEST, 12.5)
    assert progress.read(1).running == InHand(63, LONGEST.decode(), 12.5)
    assert progress.read(0).running is None


def test_a_finished_message_runs_no_more():
    progress = Progress(1)
    progress.running(0, 2, b"100-1", 1.0)
    progress.done(0)
    assert progress.read(0).running is None
    progress.running(0, 3, b"100-2", 2.0)
    view = progress.read(0)
    assert view.finished == [(2, "100-1")]
    assert view.running == InHand(3, "100-2", 2.0)


def test_a_failed_message_neither_runs_nor_is_finished():
    progress = Progress(1)
    progress.running(0, 2, b"100-1", 1.0)
    progress.stopped(0)
    assert progress.read(0).running is None
    assert progress.read(0).finished == []
    progress.running(0, 2, b"100-2", 1.0)
    progress.done(0)
    assert progress.read(0).finished == [(2, "100-2")]


def messages(*ids: str) -> list[Message]:
    return [Message("orders", 0, each, [b"v", b"1"], codec.decode) for each in ids]


def test_each_message_runs_from_when_it_is_given_until_the_next_is_asked_for():
    progress = Progress(2)
    progress.running(1, 0, b"9-9", 1.0)
    progress.done(1)
    seen = []
    for message in progress.each(1, 4, messages("1-1", LONGEST.decode(), "1-3"), math.inf):
        view = progress.read(1)
        assert view.running is not None
        assert (view.running.lane_index, view.running.id) == (4, message.id)
        assert time.monotonic() - 60 < view.running.since <= time.monotonic()
        assert view.finished == [(0, "9-9"), *((4, each) for each in seen)]
        seen.append(message.id)
    view = progress.read(1)
    assert (view.running, view.finished[1:]) == (None, [(4, "1-1"), (4, LONGEST.decode()), (4, "1-3")])


@pytest.mark.parametrize("how", ["stopped", "done"])
def test_what_became_of_a_message_that_was_in_hand_is_for_whoever_leaves(how):
    progress = Progress(1)
    for message in progress.each(0, 0, messages("1-1", "1-2", "1-3"), math.inf):
        if message.id == "1-2":
            getattr(progress, how)(0)
            break
    view = progress.read(0)
    assert view.running is None
    assert view.finished == [(0, "1-1"), (0, "1-2")][: 2 if how == "done" else 1]
    progress.running(0, 0, b"1-9", 1.0)
    assert progress.read(0).running == InHand(0, "1-9", 1.0)


@pytest.mark.parametrize("why", ["draining", "revoked", "late"])
def test_no_further_message_is_given_when_none_may_be_started(why):
    progress, until = Progress(2), math.inf
    if why == "late":
        until = time.monotonic() - 1
    given_out = []
    for message in progress.each(0, 0, messages("1-1", "1-2"), until):
        given_out.append(message.id)
        if why == "draining":
            progress.set_drain()
        else:
            progress.revoke(0)
    assert given_out == ([] if why == "late" else ["1-1"])
    assert progress.read(0).finished == [(0, each) for each in given_out]


@pytest.mark.parametrize("after", [1, 2])
def test_a_time_that_passes_on_the_way_ends_it_too(monkeypatch, after):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress, given_out = Progress(1), []
    for message in progress.each(0, 0, messages("1-1", "1-2", "1-3"), 100.0):
        given_out.append(message.id)
        now += len(given_out) == after
    assert given_out == ["1-1", "1-2"][:after]


def test_slots_whose_messages_run_by_turns_do_not_see_each_other():
    progress = Progress(3)
    ones, twos = (progress.each(slot, slot, messages(f"{slot}-1", f"{slot}-2"), math.inf) for slot in (1, 2))
    next(ones), next(twos), next(ones)
    assert progress.read(1).finished == [(1, "1-1")]
    assert progress.read(2).finished == []
    assert [message.id for message in twos] == ["2-2"]
    assert progress.read(2).finished == [(2, "2-1"), (2, "2-2")]
    assert (progress.read(1).running or InHand(0, "", 0)).id == "1-2"


def test_one_that_comes_back_to_a_slot_that_is_another_slices_by_now_changes_nothing_there():
    # Given a slice that was given up, in a process that was only slow
    progress = Progress(1)
    late = progress.each(0, 0, messages(*(f"1-{n}" for n in range(9))), math.inf)
    for _ in range(5):
        next(late)
    # When the next slice runs in its slot
    progress.clear(0)
    mine = progress.each(0, 0, messages(*(f"2-{n}" for n in range(9))), math.inf)
    next(mine), next(mine)
    assert list(late) == []
    assert progress.read(0).finished == [(0, "2-0")]
    assert (progress.read(0).running or InHand(0, "", 0)).id == "2-1"


def test_messages_beyond_the_room_are_not_given():
    progress = Progress(2)
    progress.running(1, 5, b"7-7", 1.0)
    progress.ended(0, 1, (b"1-%d" % number for number in range(MAX_FINISHED - 2)))
    given_out = [each.id for each in progress.each(0, 2, messages("2-1", "2-2", "2-3", "2-4"), math.inf)]
    assert given_out == ["2-1", "2-2"]
    assert progress.read(0).finished[-2:] == [(2, "2-1"), (2, "2-2")]
    assert list(progress.each(0, 2, messages("3-1"), math.inf)) == []
    assert progress.read(1).running == InHand(5, "7-7", 1.0)


def test_a_shorter_id_leaves_nothing_of_a_longer_one():
    progress = Progress(1)
    progress.running(0, 0, LONGEST, 1.0)
    progress.running(0, 0, b"1-1", 1.0)
    running = progress.read(0).running
    assert running is not None
    assert running.id == "1-1"


def test_a_batch_runs_as_a_whole():
    progress = Progress(1)
    progress.batch_running(0, 1, b"100-1", LONGEST, 3.0)
    view = progress.read(0)
    assert view.running == InHand(1, "100-1", 3.0)
    assert view.batch_end == LONGEST.decode()
    progress.running(0, 1, b"300-0", 4.0)
    assert progress.read(0).batch_end is None


def test_a_batch_ends_as_a_whole():
    progress = Progress(2)
    progress.running(1, 0, b"1-1", 1.0)
    progress.done(1)
    progress.batch_running(1, 63, b"2-1", b"2-3", 2.0)
    assert progress.ended(1, 63, iter([b"2-1", b"2-3"]), iter([(b"2-2", b"why"), (b"2-4", b"because")]))
    view = progress.read(1)
    assert (view.running, view.batch_end) == (None, None)
    assert view.finished == [(0, "1-1"), (63, "2-1"), (63, "2-3")]
    assert view.refused == [(63, b"why"), (63, b"because")]
    assert progress.read(0) == Progress(1).read(0)


def test_one_of_several_that_run_ends_and_the_others_go_on():
    progress = Progress(1)
    progress.batch_running(0, 7, b"2-1", b"2-3", 2.0)
    progress.ended(0, 7, [b"2-2"], others=True)
    progress.ended(0, 7, [], [(b"2-1", b"no")], others=True)
    view = progress.read(0)
    assert (view.finished, view.refused) == ([(7, "2-2")], [(7, b"no")])
    assert view.running is not None
    assert (view.running.lane_index, view.batch_end) == (7, "2-3")


def test_what_became_of_a_message_is_kept_until_it_is_settled():
    progress = Progress(1)
    for message in progress.each(0, 3, messages("1-1", "1-2", "1-3"), math.inf):
        if message.id == "1-2":
            progress.ended(0, 3, [], [(b"1-2", b"no")])
            break
    view = progress.read(0)
    assert (view.running, view.finished, view.refused) == (None, [(3, "1-1")], [(3, b"no")])
    progress.running(0, 4, b"1-3", 1.0)
    progress.done(0)
    assert progress.read(0).finished == [(3, "1-1"), (4, "1-3")]
    progress.forget_settled(0)
    view = progress.read(0)
    assert (view.finished, view.refused) == ([], [])
    progress.running(0, 3, b"1-4", 1.0)
    progress.ended(0, 3, [], [(b"1-4", b"neither")])
    assert progress.read(0).refused == [(3, b"neither")]


def test_where_there_is_no_room_for_what_became_of_a_message_that_is_said():
    progress = Progress(2)
    progress.running(1, 5, b"7-7", 1.0)
    large = b"x" * (RECORD_BYTES // 2)
    for number in (1, 2):
        progress.running(0, 1, b"1-%d" % number, 1.0)
        assert progress.ended(0, 1, [], [(b"1-%d" % number, large)])
    progress.running(0, 1, b"1-3", 1.0)
    assert not progress.ended(0, 1, [], [(b"1-3", b"y")])
    view = progress.read(0)
    assert (view.running, view.refused) == (None, [(1, large), (1, large)])
    progress.forget_settled(0)
    progress.running(0, 1, b"1-4", 1.0)
    assert progress.ended(0, 1, [], [(b"1-4", b"z" * RECORD_BYTES)])
    assert progress.read(0).refused == [(1, b"z" * RECORD_BYTES)]
    assert progress.read(1).running == InHand(5, "7-7", 1.0)
    progress.forget_settled(0)
    progress.ended(0, 1, (b"1-%d" % number for number in range(MAX_FINISHED)))
    assert not progress.ended(0, 1, [], [(b"2-1", b"no")])


def test_what_a_slice_found_is_settled_only_when_it_says_so():
    progress = Progress(1)
    assert not progress.read(0).took_in
    progress.took_in(0)
    assert progress.read(0).took_in
    progress.begin(0, 5)
    assert not progress.read(0).took_in


def test_a_settled_turn_leaves_nothing_behind():
    progress = Progress(1)
    progress.running(0, 0, b"100-1", 1.0)
    progress.done(0)
    progress.running(0, 0, b"100-2", 1.0)
    progress.forget_settled(0)
    view = progress.read(0)
    assert (view.running, view.finished) == (None, [])


@pytest.mark.parametrize("step", [1, 100])
def test_finished_messages_beyond_the_room_are_not_recorded(step):
    # Given more messages than there is room for, handled one by one or in batches
    progress = Progress(2)
    progress.running(1, 5, b"7-7", 1.0)
    for first in range(0, MAX_FINISHED + 2 * step, step):
        if step == 1:
            progress.running(0, 1, b"100-%d" % first, 1.0)
            progress.done(0)
        else:
            progress.ended(0, 1, (b"100-%d" % number for number in range(first, first + step)))
    # Then the first ones are known
    assert progress.read(0).finished == [(1, f"100-{number}") for number in range(MAX_FINISHED)]
    # And the message that runs is still known, and no other slot was touched
    progress.running(0, 9, LONGEST, 2.0)
    assert progress.read(0).running == InHand(9, LONGEST.decode(), 2.0)
    assert progress.read(1).running == InHand(5, "7-7", 1.0)
    assert progress.read(1).finished == []


def test_reports_are_kept_by_lane():
    progress = Progress(1)
    progress.report(0, MAX_LANES - 1, 3, BIG, BIG, 2**62)
    progress.report(0, 0, 1, 10, 2, -1)
    progress.report(0, 0, 2, 11, 0, 0)
    assert progress.read(0).reports == [
        LaneReport(0, 2, 11, 0, 0),
        LaneReport(MAX_LANES - 1, 3, BIG, BIG, 2**62),
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
    progress.running(0, 0, b"1-1", 1.0)
    progress.done(0)
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
    progress.running(0, 1, b"2-3", 1.0)
    progress.done(0)
    progress.batch_running(0, 1, b"2-3", b"2-9", 1.0)
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


CHILD_IS_KILLED_IN_A_HANDLER = """
import os, signal
from workers.progress import InHand, Progress
progress, (ready, say_ready) = Progress(2), os.pipe()
child = os.fork()
if child == 0:
    progress.begin(1, os.getpid())
    for seq in (1, 2):
        progress.running(1, 3, b"500-%d" % seq, 1.0)
        progress.done(1)
    progress.set_handler_ns(1, 5e6)
    progress.running(1, 3, b"500-3", 2.0)
    os.write(say_ready, b"x")
    while True:
        signal.pause()
os.close(say_ready)
assert os.read(ready, 1) == b"x"
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
view = progress.read(1)
assert view.pid == child
assert view.finished == [(3, "500-1"), (3, "500-2")], view
assert view.running == InHand(3, "500-3", 2.0), view
assert view.handler_ns == 5e6
"""

#: The child handles messages 1, 2, 3, … as fast as it can and settles every 700. Both halves of an id are
#: equal, so a record that was put together of two would show.
CHILD_IS_KILLED_AT_ANY_MOMENT = """
import math, os, signal
from bus.values import Message
from workers.progress import Progress

def message(number):
    return Message("orders", 0, f"{number}-{number}", [], None)

def number_of(id):
    ms, seq = id.split("-")
    assert ms == seq, id
    return int(ms)

def numbers_of(finished):
    numbers = sorted(number_of(id) for lane, id in finished)
    assert not numbers or numbers == list(range(numbers[0], numbers[0] + len(numbers))), finished
    return numbers

def ended(view):
    return [*view.finished, *((lane, record.decode()) for lane, record in view.refused)]

for limit in range(3000, 30001, 3000):
    progress = Progress(1)
    child = os.fork()
    if child == 0:
        number = 1
        while True:
            if IN_BATCHES:
                for _ in progress.each(0, 0, [message(number + each) for each in range(70)], math.inf):
                    number += 1
            else:
                id = b"%d-%d" % (number, number)
                progress.running(0, 0, id, 1.0)
                if number % 3:
                    progress.done(0)
                else:
                    progress.ended(0, 0, [], [(id, id)])
                number += 1
            if number % 700 <= 1:
                progress.forget_settled(0)
    try:
        latest = 0
        while latest < limit:
            assert os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, "it has ended"
            latest = max([latest, *numbers_of(ended(progress.read(0)))])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    view = progress.read(0)
    numbers = numbers_of(ended(view))
    if view.running and numbers:
        assert number_of(view.running.id) == numbers[-1] + 1, view
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize(
    "script",
    [
        CHILD_IS_KILLED_IN_A_HANDLER,
        "IN_BATCHES = False" + CHILD_IS_KILLED_AT_ANY_MOMENT,
        "IN_BATCHES = True" + CHILD_IS_KILLED_AT_ANY_MOMENT,
    ],
    ids=["in a handler", "at any moment", "at any moment of a batch"],
)
def test_after_a_kill_the_parent_knows_what_ran_and_what_was_finished(script):
    # In a process of its own: one that has threads, as this one may, should not fork
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
