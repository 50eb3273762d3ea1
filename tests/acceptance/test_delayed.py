"""Real workers and delayed messages: not before they are due, in order, once, whatever dies meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from bus.operating import delayed
from bus.streams.embedded import EmbeddedServer
from tests.acceptance.shopping import GROUPS, Shop, Worker
from tests.waiting import wait_until

#: What a message may be late by while a worker runs, and what a busy machine adds to that. Seconds.
LATE = 1.0 + 2.0


def schedule(shop: Shop, due: dict[int, float], topic: str = "keyed", **what: Any) -> dict[int, datetime]:
    """Publish numbered messages, each due in so many seconds; when each is due by the server's clock."""
    seconds, micros = shop.bus.client.call("TIME")
    now = datetime.fromtimestamp(int(seconds), UTC) + timedelta(milliseconds=int(micros) // 1000)
    moments = {number: now + timedelta(milliseconds=round(later * 1000)) for number, later in due.items()}
    for number, moment in moments.items():
        shop.bus.publish(topic, {"n": number, **what}, key=f"k{number % 5}", at=moment)
    return moments


def stored_at(shop: Shop, topic: str = "keyed") -> dict[int, datetime]:
    """When each message was stored, by the server's clock."""
    return {
        line.n: datetime.fromtimestamp(int(line.id.partition("-")[0]) / 1000, UTC)
        for line in shop.lines("start", topic)
    }


def assert_in_time(stored: dict[int, datetime], due: dict[int, datetime], late: float = LATE) -> None:
    early = {number: stored[number] - moment for number, moment in due.items() if stored[number] < moment}
    assert early == {}
    slow = {
        n: stored[n] - moment for n, moment in due.items() if stored[n] - moment > timedelta(seconds=late)
    }
    assert slow == {}


def assert_each_stored_once(shop: Shop, count: int) -> None:
    streams = [shop.bus.keys.partition("keyed", number).stream for number in range(GROUPS["keyed"][1])]
    values = [
        fields[1] for stream in streams for _, fields in shop.bus.client.call("XRANGE", stream, "-", "+")
    ]
    assert sorted(orjson.loads(value)["n"] for value in values) == list(range(count))


def assert_due_order(shop: Shop, due: dict[int, datetime]) -> None:
    """Messages of each key were handled in the order in which they were due."""
    ends = sorted(shop.lines("end", "keyed"), key=lambda line: line.at)
    for key in {line.key for line in ends}:
        handled = [line.n for line in ends if line.key == key]
        assert handled == sorted(handled, key=lambda number: (due[number], number))


@pytest.mark.both_servers
def test_messages_are_handled_when_they_are_due_and_in_due_order(shop: Shop) -> None:
    # Given workers, and messages of which the later published are due sooner, many of them at once
    shop.worker("one", "-c", "2")
    shop.worker("two", "-c", "2").wait_ready()
    shop.wait_owned("keyed")
    due = schedule(shop, {number: 4 - number // 20 * 0.25 for number in range(200)})
    shop.publish("keyed", 50, first=1000)

    shop.wait_lines(250, topic="keyed")

    # Then each is handled once, within a second of its time and not before it, and in order
    shop.wait_idle("keyed")
    stored = stored_at(shop)
    assert sorted(line.n for line in shop.lines("end", "keyed")) == [*range(200), *range(1000, 1050)]
    assert_in_time({number: stored[number] for number in due}, due)
    first = {number: due.get(number, stored[number]) for number in stored}
    assert_due_order(shop, first)


def test_delayed_messages_survive_sigkill_of_the_worker_and_a_restart_of_the_server(
    own_shop: Shop, own_server: EmbeddedServer
) -> None:
    shop = own_shop
    worker = shop.worker("one", "-c", "2").wait_ready()
    shop.wait_owned("keyed")
    due = schedule(shop, {number: 0.2 + number * 0.05 for number in range(100)}, sleep=0.01)
    shop.wait_lines(20, topic="keyed")
    # When both are killed in the middle
    worker.kill()
    own_server.kill()
    own_server.start()
    left = delayed.count(shop.bus, "keyed")
    assert left > 0
    shop.worker("two", "-c", "2").wait_ready()

    # Then all come, none before its time, and none is stored twice
    wait_until(lambda: delayed.count(shop.bus, "keyed") == 0, 60, "all to be moved")
    shop.wait_idle("keyed")
    shop.assert_each("keyed", 100)
    stored = stored_at(shop)
    assert all(stored[number] >= moment for number, moment in due.items())
    assert_each_stored_once(shop, 100)


def leader_of(shop: Shop, *workers: Worker) -> Worker:
    """The worker that does the upkeep: the first in sort order."""
    names = sorted(name.decode() for name in shop.bus.client.call("HKEYS", shop.bus.keys.workers))
    pid = int(names[0].rsplit("-", 3)[1])
    return next(worker for worker in workers if worker.pid == pid)


@pytest.mark.parametrize("end", ["kill", "freeze"])
def test_when_the_worker_that_moves_them_is_lost_another_goes_on(shop: Shop, end: str) -> None:
    # Given two workers, of which one moves what is due
    workers = [shop.worker(name, "-c", "2").wait_ready() for name in ("one", "two")]
    shop.wait_owners("keyed", *workers)
    due = schedule(shop, {number: 0.1 + number * 0.1 for number in range(150)})
    shop.wait_lines(10, topic="keyed")

    # When it is killed, or frozen so that nobody can prove its death
    leader = leader_of(shop, *workers)
    getattr(leader, end)()

    # Then the other moves the rest, long before the 15 s after which leases are taken over
    wait_until(lambda: delayed.count(shop.bus, "keyed") == 0, 40, "all to be moved")
    shop.wait_idle("keyed")
    shop.assert_each("keyed", 150)
    assert_each_stored_once(shop, 150)
    assert_in_time(stored_at(shop), due, late=LATE + 11)
