"""Faults of worker processes: nothing is lost, nothing is stuck, and only the message at fault is blamed."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter, defaultdict

import pytest
from celery import Celery

from tests.acceptance.shopping import Line, Shop, Worker
from tests.servers import broker_url
from tests.waiting import wait_until

#: One process stays free for ordinary tasks.
TWO_SLICES = ("-c", "3")


def attempts(shop: Shop, topic: str) -> dict[int, list[int]]:
    """Number → the attempts in which a handler was called with it, in order."""
    found: dict[int, list[int]] = defaultdict(list)
    for line in shop.lines("start", topic):
        found[line.n].append(line.attempt)
    return found


def line_of(shop: Shop, n: int, what: str = "start", topic: str = "keyed", timeout: float = 30) -> Line:
    """The first line of a message, as soon as it is there."""

    def found() -> Line | None:
        return next((line for line in shop.lines(what, topic) if line.n == n), None)

    line = wait_until(found, timeout, f"message {n} to {what}")
    assert line is not None
    return line


def test_a_process_that_dies_costs_its_message_one_attempt_and_its_neighbours_nothing(shop: Shop) -> None:
    # Given one message that ends its process whenever it runs, and one during which we kill the process
    shop.publish("keyed", 100)
    shop.publish("keyed", 1, first=100, exit=99)
    shop.publish("keyed", 60, first=101)
    shop.publish("keyed", 1, first=161, sleep=30, slow=1)
    shop.publish("keyed", 138, first=162)
    worker = shop.worker("one", *TWO_SLICES).wait_ready()

    # When a pool process is killed in the middle of a message
    victim = line_of(shop, 161)
    os.kill(victim.pid, signal.SIGKILL)

    # Then that is seen at once (billiard alone may take 5 s), and the message runs again
    wait_until(lambda: attempts(shop, "keyed")[161] == [1, 2], 4, "the second attempt")
    shop.wait_idle("keyed")
    assert sorted(line.n for line in shop.lines("end", "keyed")) == [n for n in range(300) if n != 100]
    shop.assert_order("keyed", by=lambda line: line.key)
    # And only those two were tried more than once
    tried = attempts(shop, "keyed")
    assert {n: times for n, times in tried.items() if times != [1]} == {100: [1, 2, 3], 161: [1, 2]}
    [letter] = shop.dead_letters("keyed")
    assert (letter["reason"], letter["attempts"]) == (b"worker lost", b"3")
    assert worker.stop() == 0


def test_a_message_that_kills_its_process_is_found_in_every_kind_of_group(shop: Shop) -> None:
    for topic in ("strict", "loose", "batches"):
        shop.publish(topic, 80)
        shop.publish(topic, 1, first=80, exit=99)
        shop.publish(topic, 79, first=81)

    shop.worker("one", *TWO_SLICES).wait_ready()

    for topic in ("strict", "loose", "batches"):
        shop.wait_idle(topic)
        assert sorted(line.n for line in shop.lines("end", topic)) == [n for n in range(160) if n != 80]
        [letter] = shop.dead_letters(topic)
        assert (letter["reason"], letter["attempts"]) == (b"worker lost", b"3")
    shop.assert_order("strict", by=lambda line: line.partition)
    shop.assert_order("batches", by=lambda line: line.key)


def test_time_limits_stop_only_the_message_that_exceeds_them(shop: Shop) -> None:
    # Given messages that are too slow once, and one that not even the soft limit can move
    shop.publish("limited", 20)
    shop.publish("limited", 2, first=20, sleep=30, slow=1)
    shop.publish("limited", 1, first=22, stubborn=1)
    shop.publish("limited", 1, first=23, stubborn=99)
    shop.publish("limited", 36, first=24)

    shop.worker("one", *TWO_SLICES).wait_ready()
    shop.wait_idle("limited")

    # Then the slow ones were interrupted, the stubborn ones cost their process, and the others nothing
    assert sorted(line.n for line in shop.lines("end", "limited")) == [n for n in range(60) if n != 23]
    shop.assert_order("limited", by=lambda line: line.key)
    again = {20: [1, 2], 21: [1, 2], 22: [1, 2], 23: [1, 2, 3]}
    assert {n: times for n, times in attempts(shop, "limited").items() if times != [1]} == again
    assert shop.ledger.read_text().count("unmoved SoftTimeLimitExceeded") == 4
    [letter] = shop.dead_letters("limited")
    assert b"time limit" in letter["reason"]


@pytest.mark.parametrize("soft", [False, True], ids=["cold", "soft"])
def test_sigquit_repeats_no_more_than_the_messages_in_hand(shop: Shop, soft: bool) -> None:
    # Given a worker in the middle of its work, which Celery ends at once, or after a while for running tasks
    if soft:
        shop.environment["SHOP_SETTINGS"] = json.dumps({"CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT": 4})
    shop.publish("keyed", 400, sleep=0.02)
    shop.publish("loose", 100, sleep=0.02)
    first = shop.worker("one", *TWO_SLICES).wait_ready()
    shop.wait_lines(60)

    first.signal(signal.SIGQUIT)
    first.wait()
    assert len(shop.lines()) < 500

    shop.worker("two", *TWO_SLICES).wait_ready()
    shop.wait_idle("keyed")
    shop.wait_idle("loose")
    twice = shop.assert_each("keyed", 400) + shop.assert_each("loose", 100)
    shop.assert_order("keyed", by=lambda line: line.key)
    if soft:
        assert twice == 0
        assert len(shop.lines("start")) == 500
    else:
        assert twice <= 2 * 20  # what each process handles within the 0.2 s between two settles


@pytest.mark.parametrize(
    "options",
    [("-c", "3", "--max-tasks-per-child", "2"), ("-c", "3", "--max-memory-per-child", "1")],
    ids=["tasks", "memory"],
)
def test_processes_that_celery_replaces_lose_and_repeat_nothing(shop: Shop, options: tuple[str, ...]) -> None:
    for topic in ("keyed", "loose"):
        shop.publish(topic, 400, sleep=0.01)

    worker = shop.worker("one", *options).wait_ready()
    for topic in ("keyed", "loose"):
        shop.wait_idle(topic)
        shop.assert_each_once(topic, 400)

    shop.assert_order("keyed", by=lambda line: line.key)
    assert len({line.pid for line in shop.lines()}) > 2
    assert {line.attempt for line in shop.lines("start")} == {1}
    assert worker.stop() == 0


def test_autoscale_adds_processes_under_load_and_loses_nothing_when_it_takes_them_away(shop: Shop) -> None:
    # Given a worker that may grow from one process to three
    worker = shop.worker("one", "--autoscale", "3,1").wait_ready()
    shop.wait_owned("keyed")
    assert len(worker.children()) == 1

    # When there is more to do than one process can
    shop.publish("keyed", 600, sleep=0.02)
    wait_until(lambda: len(worker.children()) > 1, 10, "the pool to grow")
    shop.wait_idle("keyed")

    shop.assert_each_once("keyed", 600)
    shop.assert_order("keyed", by=lambda line: line.key)
    assert len({line.pid for line in shop.lines()}) > 1


def test_a_slice_that_is_revoked_and_terminated_is_done_again_by_another_process(shop: Shop) -> None:
    # Given a process in the middle of a long message, with others behind it
    shop.publish("keyed", 50)
    shop.publish("keyed", 1, first=50, sleep=30, slow=1)
    shop.publish("keyed", 49, first=51)
    worker = shop.worker("one", *TWO_SLICES).wait_ready()
    victim = line_of(shop, 50)

    # When an operator revokes its task, as Flower does
    with Celery(broker=broker_url(shop.bus.settings.url), set_as_current=False) as app:
        [task] = [each for each in running_tasks(app) if each["worker_pid"] == victim.pid]
        assert "nonce" not in str(task)
        app.control.revoke(task["id"], terminate=True, signal="SIGKILL")

    # Then the message costs one attempt and everything is done, without two processes on one lane
    shop.wait_idle("keyed")
    shop.assert_each_once("keyed", 100)
    shop.assert_order("keyed", by=lambda line: line.key)
    assert {n: times for n, times in attempts(shop, "keyed").items() if times != [1]} == {50: [1, 2]}
    assert worker.stop() == 0


def running_tasks(app: Celery) -> list[dict[str, object]]:
    replies = app.control.inspect(timeout=3).active() or {}
    return [task for tasks in replies.values() for task in tasks]


def test_two_workers_of_one_name_are_two_workers(shop: Shop) -> None:
    same = ("-c", "1", "-n", "same@%h")
    one, two = (shop.worker(name, *same) for name in ("one", "two"))
    for worker in (one, two):
        worker.wait_ready()
    shop.wait_owners("keyed", one, two)

    for topic in ("keyed", "loose"):
        shop.publish(topic, 300, sleep=0.002)
    for topic in ("keyed", "loose"):
        shop.wait_idle(topic)
        shop.assert_each_once(topic, 300)

    shop.assert_order("keyed", by=lambda line: line.key)
    assert {line.pid for line in shop.lines("end", "keyed")} == {*one.children(), *two.children()}


def test_a_handler_that_breaks_its_database_connection_does_not_break_the_next(shop: Shop) -> None:
    shop.publish("keyed", 40, keys=1, database="use")
    shop.publish("keyed", 1, first=40, keys=1, database="close")
    shop.publish("keyed", 20, first=41, keys=1, database="use")
    shop.publish("keyed", 1, first=61, keys=1, database="unfit")
    shop.publish("keyed", 20, first=62, keys=1, database="use")
    # Others of that partition, which are not held back behind the failing ones
    shop.publish("keyed", 200, first=82, database="use")

    shop.worker("one", "-c", "1").wait_ready()
    shop.wait_idle("keyed")

    tried = attempts(shop, "keyed")
    assert {n: times for n, times in tried.items() if times != [1]} == {40: [1, 2, 3], 61: [1, 2, 3]}
    assert sorted(line.n for line in shop.lines("end")) == [n for n in range(282) if n not in (40, 61)]


@pytest.fixture
def both_groups(shop: Shop) -> tuple[Worker, Worker]:
    """A worker that serves two groups, and one that does not serve the bus at all."""
    return (
        shop.worker("some", "-c", "1", "--groups", "bykey, inorder").wait_ready(),
        shop.worker("none", "-c", "1", "--no-bus").wait_ready(),
    )


def test_a_worker_serves_the_groups_that_it_is_told_to(
    shop: Shop, both_groups: tuple[Worker, Worker]
) -> None:
    some, none = both_groups
    for topic in ("keyed", "strict", "loose"):
        shop.publish(topic, 40)

    shop.wait_idle("keyed")
    shop.wait_idle("strict")
    assert Counter(line.topic for line in shop.lines()) == {"keyed": 40, "strict": 40}
    assert {line.pid for line in shop.lines()} == set(some.children())
    assert not none.says("Consuming")

    # And what nobody served waits for the next worker that does
    shop.worker("rest", "-c", "1", "--groups", "anyhow").wait_ready()
    shop.wait_idle("loose")
    shop.assert_each_once("loose", 40)


def test_a_group_that_nobody_subscribed_is_refused_at_the_start(shop: Shop) -> None:
    worker = shop.worker("lost", "-c", "1", "--groups", "bykey,nobody")

    assert worker.wait() != 0
    assert worker.says("No handler is subscribed for the group(s) nobody.")
    assert worker.says("Known groups: anyhow, bykey, crates, inorder, limits, waiters.")
