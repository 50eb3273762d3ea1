"""The thread that keeps house: each step at its own pace, in the leader alone, whatever fails."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.db import DatabaseError

from bus.errors import BusError, BusUnavailable
from bus.values import TopicSpec
from tests.waiting import wait_until
from workers.upkeep.chores import Chores, _in_each
from workers.upkeep.threads import Step, Upkeep

#: So short that a test need not wait, so long that the thread is not always busy. Seconds.
SOON = 0.005


@contextmanager
def running(*steps: Step, leads: Callable[[], bool] = lambda: True) -> Iterator[Upkeep]:
    upkeep = Upkeep("test", steps, is_leader=leads)
    upkeep.start()
    yield upkeep
    upkeep.stop()
    upkeep.join(timeout=10)
    assert not upkeep.is_alive()


@pytest.mark.parametrize(("partitions", "seconds"), [(8, 30), (256, 60), (1024, 210)])
def test_losses_are_looked_for_at_a_bounded_rate(
    partitions: int, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    now = 1_000.0
    monkeypatch.setattr("workers.upkeep.chores.time.monotonic", lambda: now)
    monkeypatch.setattr("workers.upkeep.chores.losses.look", lambda _bus: looks.append(now) or [])
    tables = SimpleNamespace(topics={"t": TopicSpec(name="t", partitions=partitions)})
    chores = Chores(cast(Any, SimpleNamespace(registry=SimpleNamespace(tables=lambda: tables))))
    for _ in range(20):  # as the thread calls it
        chores.count_losses()
        now += 30
    assert {after - before for before, after in itertools.pairwise(looks)} == {seconds}


def test_what_keeps_people_waiting_has_threads_of_its_own() -> None:
    threads = Chores(cast(Any, None)).threads(bool)
    periods = {each.name: {step.name: step.seconds for step in each._steps} for each in threads}
    assert periods == {
        "jitney-delayed": {"move delayed": 0.5},
        "jitney-outbox": {"relay outbox": 0.5},
        "jitney-upkeep": {"copy marks": 10, "delete inbox rows": 10, "count losses": 30, "trim": 30},
    }


@pytest.mark.django_db
def test_a_database_that_fails_keeps_no_other_waiting() -> None:
    asked: list[str] = []

    class Two:
        def aliases(self) -> list[str]:
            return ["broken", "sound"]

    def work(alias: str) -> None:
        asked.append(alias)
        if alias == "broken":
            raise DatabaseError("no such table")

    with pytest.raises(BusError, match="database 'broken': no such table"):
        _in_each(cast(Any, Two()), work)
    assert asked == ["broken", "sound"]


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

    def first() -> None:
        begun.append("first")
        upkeep.stop()

    steps = [Step(first, SOON), Step(lambda: begun.append("second"), SOON)]
    upkeep = Upkeep("test", steps, is_leader=lambda: True)
    upkeep.run()
    assert begun == ["first"]
