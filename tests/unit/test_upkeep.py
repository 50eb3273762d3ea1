"""The thread that keeps house: each step at its own pace, in the leader alone, whatever fails."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from bus.errors import BusUnavailable
from tests.waiting import wait_until
from workers.upkeep import Step, Upkeep

#: So short that a test need not wait, so long that the thread is not always busy. Seconds.
SOON = 0.005


@contextmanager
def running(*steps: Step, leads: Callable[[], bool] = lambda: True) -> Iterator[Upkeep]:
    upkeep = Upkeep(cast(Any, None), is_leader=leads)
    upkeep._steps = list(steps)
    upkeep.start()
    yield upkeep
    upkeep.stop()
    upkeep.join(timeout=10)
    assert not upkeep.is_alive()


def test_delayed_messages_are_moved_far_more_often_than_marks_are_copied_and_topics_trimmed() -> None:
    periods = {step.name: step.seconds for step in Upkeep(cast(Any, None), is_leader=bool)._steps}
    assert periods == {"move delayed": 0.5, "copy marks": 10, "trim": 30}


def test_each_step_runs_at_its_own_pace_and_at_once_when_the_thread_begins() -> None:
    times: Counter[str] = Counter()
    often = Step(lambda: times.update(["often"]), SOON)
    seldom = Step(lambda: times.update(["seldom"]), 3600)
    with running(seldom, often):
        wait_until(lambda: times["often"] >= 20)
    assert times["seldom"] == 1


def test_a_long_step_leaves_the_others_their_turn() -> None:
    order: list[str] = []
    with running(Step(lambda: order.append("a"), 0), Step(lambda: order.append("b"), 0)):
        wait_until(lambda: len(order) >= 40)
    assert order[:40] == ["a", "b"] * 20


def test_nothing_is_done_by_a_worker_that_does_not_lead_until_it_does() -> None:
    leads, asked, done = threading.Event(), threading.Semaphore(0), threading.Event()

    def is_leader() -> bool:
        asked.release()
        return leads.is_set()

    with running(Step(done.set, SOON), leads=is_leader):
        for _ in range(5):
            assert asked.acquire(timeout=10)
        assert not done.is_set()
        leads.set()
        assert done.wait(10)


@pytest.mark.parametrize("error", [BusUnavailable("away"), ZeroDivisionError("a mistake")])
def test_a_step_that_fails_is_said_once_tried_again_and_stops_no_other(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    times: Counter[str] = Counter()

    def _fail_often() -> None:
        times["failed"] += 1
        raise error

    steps = Step(_fail_often, SOON), Step(lambda: times.update(["fine"]), SOON)
    with caplog.at_level(logging.WARNING, "jitney.workers"), running(*steps):
        wait_until(lambda: times["failed"] >= 10 and times["fine"] >= 10)
    [record] = caplog.records
    assert "Upkeep (fail often) failed" in record.getMessage()
    assert str(error) in caplog.text


def test_a_thread_that_is_stopped_does_not_begin_another_step() -> None:
    begun: list[str] = []
    upkeep = Upkeep(cast(Any, None), is_leader=lambda: True)

    def first() -> None:
        begun.append("first")
        upkeep.stop()

    upkeep._steps = [Step(first, SOON), Step(lambda: begun.append("second"), SOON)]
    upkeep.run()
    assert begun == ["first"]
