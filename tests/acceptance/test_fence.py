"""The fence: a worker that was frozen settles and fetches nothing any more; a slow one loses nothing."""

from __future__ import annotations

import itertools
import os
import signal
from collections import defaultdict

import pytest

from tests.acceptance.shopping import Line, Shop, Worker
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

#: What a process can have handled and not settled: 0.2 s between settles, at 0.02 s a message, and slack.
UNSETTLED = 20


def wait_busy(shop: Shop, *workers: Worker) -> None:
    """Until each of these workers has handled something."""

    def busy() -> bool:
        pids = {line.pid for line in shop.lines()}
        return all(pids & set(worker.children()) for worker in workers)

    wait_until(busy, 30, "all workers to be at work", 0.05)


def begun_twice(shop: Shop, pids: set[int], after: int) -> list[Line]:
    """Messages that one of these processes began after a time though another had begun them before."""
    first: dict[tuple[str, int], Line] = {}
    found = []
    for line in sorted(shop.lines("start"), key=lambda line: line.at):
        before = first.setdefault((line.topic, line.n), line)
        if line.pid in pids and line.at > after and before.pid not in pids:
            found.append(line)
    return found


def assert_no_overlap(shop: Shop, topic: str, pids: set[int]) -> None:
    """No two handlers of one key ran at once, as far as these processes go."""
    begun = {(line.n, line.pid, line.attempt): line.at for line in shop.lines("start", topic)}
    spans: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for line in shop.lines("end", topic):
        if line.pid in pids:
            spans[line.key].append((begun[line.n, line.pid, line.attempt], line.at, line.n))
    for key, taken in spans.items():
        taken.sort()
        for (_, ended, one), (began, _, other) in itertools.pairwise(taken):
            assert began >= ended, f"{key}: {one} and {other} ran at once"


def test_frozen_workers_that_come_back_settle_fetch_and_reorder_nothing(shop: Shop) -> None:
    # Given four workers at work: one to be frozen whole, one its main process, one a child
    whole, parent, child, healthy = workers = [
        shop.worker(name, "-c", "2").wait_ready() for name in ("whole", "parent", "child", "healthy")
    ]
    shop.wait_owners("keyed", *workers)
    topics = ("keyed", "loose", "strict")
    for topic in topics:
        shop.publish(topic, 500, keys=40, sleep=0.02)
    wait_busy(shop, *workers)
    frozen = {*whole.children(), *parent.children()}
    victim = next(line.pid for line in reversed(shop.lines("start")) if line.pid in child.children())

    # When they are frozen for longer than a worker may be silent, until others have all that was theirs
    whole.freeze()
    os.kill(parent.pid, signal.SIGSTOP)
    os.kill(victim, signal.SIGSTOP)
    shop.wait_owners("keyed", child, healthy)
    # and there is more to do for all, so that the others are in the middle of it when they come back
    for topic in topics:
        shop.publish(topic, 500, first=500, keys=40, sleep=0.02)
    shop.wait_lines(len(shop.lines()) + 40)
    thawed = max(line.at for line in shop.lines())
    whole.thaw()
    os.kill(parent.pid, signal.SIGCONT)
    os.kill(victim, signal.SIGCONT)

    # Then nothing is lost, and what came twice is what could not have been settled before
    for topic in topics:
        shop.wait_idle(topic, 90)
    assert sum(shop.assert_each(topic, 1000) for topic in topics) <= UNSETTLED * len(whole.children())
    shop.assert_order("keyed", by=lambda line: line.key)
    shop.assert_order("strict", by=lambda line: line.partition)
    # They began nothing that another had begun before, and said that their leases were lost
    assert begun_twice(shop, frozen, thawed) == []
    for worker in (whole, parent):
        said = worker.says("is not ours any more") or worker.says("another worker goes on there")
        assert said, f"{worker.name} lost its leases without a word"
    # The worker whose child was frozen lost nothing and was never thought dead
    assert not child.says("is not ours any more")
    assert_no_overlap(shop, "keyed", {*child.children(), *healthy.children()})
    # And they work again
    shop.wait_owners("keyed", *workers)
    for worker in workers:
        assert worker.stop() == 0


def test_a_message_that_runs_longer_than_the_liveness_time_runs_once(shop: Shop) -> None:
    # Given a worker that runs a message for 20 s, with others of its key and of others behind it
    shop.publish("keyed", 100)
    shop.publish("keyed", 1, first=100, sleep=20)
    shop.publish("loose", 1, sleep=20)
    shop.publish("keyed", 199, first=101, sleep=0.002)
    first = shop.worker("one", "-c", "3").wait_ready()
    wait_until(
        lambda: {(line.topic, line.n) for line in shop.lines("start")} >= {("keyed", 100), ("loose", 0)},
        30,
        "both slow messages to begin",
    )

    # When another joins meanwhile, and takes its share of the lanes
    second = shop.worker("two", "-c", "3").wait_ready()

    shop.wait_idle("keyed")
    shop.wait_idle("loose")
    shop.assert_each_once("keyed", 300)
    shop.assert_each_once("loose", 1)
    assert len(shop.lines("start")) == 301
    assert {line.attempt for line in shop.lines("start")} == {1}
    shop.assert_order("keyed", by=lambda line: line.key)
    shop.wait_owners("keyed", first, second)
    for worker in (first, second):
        assert not worker.says("Workers that are gone")
        assert worker.stop() == 0
