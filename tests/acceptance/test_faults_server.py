"""Faults of Redis, of the network to it and of the broker: consuming goes on by itself, nothing is lost."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bus.client import Bus
from bus.errors import BusError, BusFull, BusUnavailable, PublishUncertain
from bus.format.partition import partition_of
from bus.streams.commands import fields_of
from bus.streams.embedded import EmbeddedServer
from tests.acceptance.shopping import GROUPS, Shop, Worker
from tests.proxy import Proxy
from tests.servers import broker_url, redis7_server, valkey_server
from tests.waiting import wait_until

#: One process stays free for ordinary tasks.
TWO_SLICES = ("-c", "3")


@pytest.fixture
def crash_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that loses nothing when its process is killed: it writes before it answers, always.

    With "everysec" a write may be put off for 2 s while the disk is busy with the one before.
    """
    with EmbeddedServer(tmp_path / "server", config={"appendfsync": "no"}) as server:
        yield server


@pytest.fixture
def crash_shop(crash_server: EmbeddedServer, prefix: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(crash_server.url, prefix, tmp_path)
    yield shop
    shop.end()


class Publisher(threading.Thread):
    """Publishes numbered messages one by one, and each again until it has the receipt."""

    def __init__(self, shop: Shop, topic: str, numbers: range) -> None:
        super().__init__(name="publisher", daemon=True)
        self._shop, self._topic, self._numbers = shop, topic, numbers
        self._pause = threading.Event()
        self.receipts: list[tuple[int, str]] = []
        self.uncertain = 0

    def run(self) -> None:
        bus = Bus(self._shop.bus.settings)
        for number in self._numbers:
            while not self._publish(bus, number):
                self._pause.wait(0.05)
            self._pause.wait(0.001)  # the rate: at most a thousand a second
        bus.close()

    def _publish(self, bus: Bus, number: int) -> bool:
        try:
            receipt = bus.publish(self._topic, {"n": number}, key=f"k{number % 20}")
        except PublishUncertain:
            self.uncertain += 1
            return False
        except BusUnavailable:
            return False
        self.receipts.append((receipt.partition, receipt.id))
        return True


def assert_nobody_was_thought_dead(*workers: Worker) -> None:
    for worker in workers:
        assert worker.runs, worker.log.read_text()
        assert not worker.says("Workers that are gone")


@pytest.mark.timeout(400)
def test_redis_restarted_killed_and_dropping_everybody_costs_no_message_and_no_order(
    crash_shop: Shop, crash_server: EmbeddedServer
) -> None:
    # Given two workers, and two publishers that go on whatever happens, each with keys of its own
    shop, count = crash_shop, 10_000
    workers = [shop.worker(name, "-c", "2").wait_ready() for name in ("one", "two")]
    shop.wait_owners("keyed", *workers, timeout=90)
    publishers = [Publisher(shop, "keyed", range(first, count, 2)) for first in range(2)]
    for publisher in publishers:
        publisher.start()

    def published() -> list[tuple[int, str]]:
        return [place for publisher in publishers for place in publisher.receipts]

    # When Redis is restarted twice, killed, and closes all connections, each in the middle of the flow
    faults: list[Callable[[], object]] = [
        crash_server.restart,
        crash_server.restart,
        lambda: (crash_server.kill(), crash_server.start()),
        lambda: shop.bus.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),
    ]
    for share, fault in zip((1 / 3, 1 / 2, 2 / 3, 5 / 6), faults, strict=True):
        wait_until(lambda: len(published()) >= share * count, 90, "the publishers")  # noqa: B023
        fault()

    # Then every message with a receipt is handled, each stream entry once, in order per key
    for publisher in publishers:
        publisher.join(90)
    receipts = published()
    assert len(receipts) == count
    shop.wait_idle("keyed", 120)
    handled = Counter((line.partition, line.id) for line in shop.lines("end", "keyed"))
    assert set(receipts) <= set(handled)
    assert {place: times for place, times in handled.items() if times > 1} == {}
    assert {line.n for line in shop.lines("end", "keyed")} == set(range(count))
    assert len(handled) - count <= sum(publisher.uncertain for publisher in publishers)
    shop.assert_order("keyed", by=lambda line: line.key)
    assert_nobody_was_thought_dead(*workers)


def test_a_frozen_redis_makes_nobody_dead_and_nothing_twice(
    own_shop: Shop, own_server: EmbeddedServer
) -> None:
    shop = own_shop
    workers = [shop.worker(name, "-c", "2").wait_ready() for name in ("one", "two")]
    shop.wait_owners("keyed", *workers)
    for topic in ("keyed", "loose", "batches"):
        shop.publish(topic, 300, sleep=0.01)
    shop.wait_lines(100)

    # When Redis does not answer for longer than a worker may be silent
    own_server.freeze()
    time.sleep(20)  # the fault itself, not a wait for anything
    own_server.thaw()

    for topic in ("keyed", "loose", "batches"):
        shop.wait_idle(topic)
        shop.assert_each_once(topic, 300)
    shop.assert_order("keyed", by=lambda line: line.key)
    assert_nobody_was_thought_dead(*workers)


@pytest.mark.parametrize("make", [valkey_server, redis7_server])
def test_consumers_drain_settle_and_bury_while_memory_is_full(
    make: Callable[[Path], EmbeddedServer], prefix: str, tmp_path: Path
) -> None:
    with make(tmp_path / "server") as server:
        shop = Shop(server.url, prefix, tmp_path)
        try:
            _drain_while_full(shop)
        finally:
            shop.end()


def _drain_while_full(shop: Shop) -> None:
    # Given work of every kind and outcome, most of it not done yet
    worker = shop.worker("one", *TWO_SLICES).wait_ready()
    topics = ("keyed", "strict", "loose", "batches")
    for topic in topics:
        shop.wait_owned(topic) if topic != "loose" else None
        shop.publish(topic, 100, sleep=0.01)
        shop.publish(topic, 1, first=100, fail=2)
        shop.publish(topic, 1, first=101, fail=99)
        shop.publish(topic, 1, first=102, reject="no such product")
        shop.publish(topic, 1, first=103, die=1)
        shop.publish(topic, 96, first=104, sleep=0.01)

    # When memory is full
    shop.bus.client.call("CONFIG", "SET", "maxmemory", "1mb")
    with pytest.raises(BusFull):
        shop.publish("keyed", 1, first=999)
    assert not shop.idle("keyed")

    # Then everything is settled all the same
    for topic in topics:
        shop.wait_idle(topic)
        assert sorted(line.n for line in shop.lines("end", topic)) == [
            n for n in range(200) if n not in (101, 102)
        ]
        reasons = [letter["reason"].decode() for letter in shop.dead_letters(topic)]
        assert len(reasons) == 2
        assert "no such product" in reasons
    shop.assert_order("keyed", by=lambda line: line.key)
    shop.assert_order("strict", by=lambda line: line.partition)

    # And when there is room again, so do new messages
    shop.bus.client.call("CONFIG", "SET", "maxmemory", "0")
    shop.publish("keyed", 20, first=200)
    shop.wait_lines(218, topic="keyed", timeout=10)
    assert worker.runs


def test_what_is_trimmed_away_while_pending_is_counted_and_nothing_waits_for_it(shop: Shop) -> None:
    # Given messages that wait for their retry, others held back behind them, and left-overs of a dead worker
    shop.publish("keyed", 40, postpone=3)
    shop.publish("keyed", 400, first=40, keys=40, sleep=0.01)
    first = shop.worker("one", *TWO_SLICES).wait_ready()
    shop.wait_lines(60)
    first.kill()
    waiting = shop.group("keyed").pending

    # When somebody trims the streams
    for number in range(GROUPS["keyed"][1]):
        shop.bus.client.call("XTRIM", shop.bus.keys.partition("keyed", number).stream, "MAXLEN", 0)
    second = shop.worker("two", *TWO_SLICES).wait_ready()

    # Then what was pending is counted as lost, and new messages of all keys are handled at once
    shop.wait_idle("keyed")
    wait_until(lambda: not (shop.group("keyed").retrying or shop.group("keyed").held), 10, "the keys")
    assert shop.group("keyed").trimmed == waiting
    before = len(shop.lines("end"))
    shop.publish("keyed", 80, first=1000, keys=40)
    shop.wait_lines(before + 80, timeout=10)
    shop.assert_order("keyed", by=lambda line: line.key)
    assert second.stop() == 0


@pytest.mark.both_servers
def test_groups_streams_and_everything_may_vanish_under_a_running_worker(
    shop: Shop, server: EmbeddedServer
) -> None:
    worker = shop.worker("one", *TWO_SLICES).wait_ready()
    topics = ("keyed", "strict", "loose", "batches")
    done = 0
    for topic in topics:
        shop.publish(topic, 40)
    for topic in topics:
        shop.wait_idle(topic)

    def goes_on(what: str) -> None:
        """New messages of every group are handled within seconds, and none that was settled comes again."""
        nonlocal done
        done += 1
        for topic in topics:
            _publish_patiently(shop, topic, 40, first=40 * done)
        for topic in topics:
            wait_until(
                lambda: len(shop.lines("end", topic)) >= 40 * (done + 1),  # noqa: B023
                15,
                f"{topic} to go on after {what}",
            )
            shop.assert_each_once(topic, 40 * (done + 1))

    streams = [
        (shop.bus.keys.partition(topic, number).stream, GROUPS[topic][0])
        for topic in topics
        for number in range(GROUPS[topic][1])
    ]
    for stream, group in streams:
        shop.bus.client.call("XGROUP", "DESTROY", stream, group)
    goes_on("its group was destroyed")

    shop.bus.client.call("DEL", *(stream for stream, _ in streams))
    goes_on("its streams were deleted")

    for key in shop.bus.client.call("KEYS", f"{shop.bus.keys.prefix}:*"):
        shop.bus.client.call("DEL", key)
    goes_on("all keys were deleted")
    assert worker.stop() == 0


def _publish_patiently(shop: Shop, topic: str, count: int, first: int) -> None:
    """As a publisher does that tries again: until the topic is there."""

    def publish() -> bool:
        shop.bus.registry.forget_cache()
        try:
            shop.publish(topic, count, first=first)
        except BusError:
            return False
        return True

    wait_until(publish, 10, f"{topic} to take messages")


# ---------------------------------------------------------------------- the network


@pytest.fixture
def far_shop(own_server: EmbeddedServer, prefix: str, tmp_path: Path) -> Iterator[tuple[Shop, Proxy]]:
    """A shop whose workers reach the bus through a proxy, and their broker directly."""
    with Proxy(own_server.url) as proxy:
        shop = Shop(own_server.url, prefix, tmp_path)
        shop.environment["BUS_URL"] = proxy.url
        shop.environment["CELERY_BROKER_URL"] = broker_url(own_server.url)
        yield shop, proxy
        shop.end()


class Looking:
    """Publishes each message until it is stored, and looks whether it is before it tries again.

    Its ledger holds the places of the messages that it knows to be stored, in its order.
    """

    def __init__(self, shop: Shop, far: Bus) -> None:
        self._near, self._far = shop.bus, far
        self.ledger: list[tuple[int, str]] = []
        self.refused = self.uncertain = 0

    def publish(self, topic: str, number: int) -> None:
        key = f"k{number % 20}"
        partition = partition_of(key, GROUPS[topic][1])
        place = None
        while place is None:
            try:
                place = self._far.publish(topic, {"n": number}, key=key).id
            except BusUnavailable:
                self.refused += 1
            except PublishUncertain:
                self.uncertain += 1
                place = self._look(topic, partition, number)
        self.ledger.append((partition, place))

    def _look(self, topic: str, partition: int, number: int) -> str | None:
        """The id of this message if it is the last of its partition; nobody else publishes there."""
        stream = self._near.keys.partition(topic, partition).stream
        for raw_id, fields in self._near.client.call("XREVRANGE", stream, "+", "-", "COUNT", 1):
            if json.loads(fields_of(fields)["v"])["n"] == number:
                return str(raw_id.decode())
        return None


def test_a_publisher_that_looks_after_each_lost_reply_stores_everything_once(
    own_server: EmbeddedServer, own_shop: Shop
) -> None:
    # Given a publisher that is not told of every seventh thing that it did
    shop, count = own_shop, 0
    with Proxy(own_server.url) as proxy, closing(Bus(proxy.url, prefix=shop.bus.settings.prefix)) as far:
        publisher = Looking(shop, far)
        proxy.drop_replies(every=7)

        # When it publishes on and on, until it did not hear of 200 messages
        while publisher.uncertain < 200:
            publisher.publish("batches", count)
            count += 1

    # Then the streams hold what is in its ledger, and nothing else
    assert len(publisher.ledger) == count
    for number in range(GROUPS["batches"][1]):
        stream = shop.bus.keys.partition("batches", number).stream
        stored = [raw_id.decode() for raw_id, _ in shop.bus.client.call("XRANGE", stream, "-", "+")]
        assert stored == [place for partition, place in publisher.ledger if partition == number]


@pytest.mark.timeout(400)
def test_lost_replies_repeat_and_lose_nothing(far_shop: tuple[Shop, Proxy]) -> None:
    shop, proxy = far_shop
    worker = shop.worker("one", *TWO_SLICES).wait_ready()
    topics = ("keyed", "strict", "loose", "batches")
    for topic in ("keyed", "strict", "batches"):
        shop.wait_owned(topic)

    # When every seventh reply is lost on its way, in the middle of every kind of work
    proxy.drop_replies(every=7)
    for topic in topics:
        shop.publish(topic, 300, sleep=0.003)
        shop.publish(topic, 10, first=300, fail=1)
        shop.publish(topic, 190, first=310, sleep=0.003)
    count = 500
    while proxy.dropped < 200:
        shop.wait_lines(len(topics) * (count - 100), timeout=120)  # never idle, never far behind
        for topic in topics:
            shop.publish(topic, 100, first=count, sleep=0.003)
        count += 100
    proxy.drop_replies(every=0)

    for topic in topics:
        shop.wait_idle(topic, 120)
        shop.assert_each_once(topic, count)
    shop.assert_order("keyed", by=lambda line: line.key)
    shop.assert_order("strict", by=lambda line: line.partition)
    assert_nobody_was_thought_dead(worker)


def test_commands_that_arrive_after_the_worker_gave_them_up_change_nothing(
    far_shop: tuple[Shop, Proxy],
) -> None:
    # Given a worker in the middle of two partitions, all of whose connections fall silent
    shop, proxy = far_shop
    worker = shop.worker("one", *TWO_SLICES).wait_ready()
    shop.wait_owned("strict")
    shop.publish("strict", 1500, sleep=0.004)
    shop.wait_lines(60)
    assert proxy.hold() > 0

    # When it has found new ones and goes on, and only then the old commands arrive
    seen = len(shop.lines())
    shop.wait_lines(seen + 100)
    assert shop.group("strict").lag.count > 200  # there is something to be fetched by them
    proxy.release()

    # Then they have fetched nothing, of which nobody would ever hear
    shop.wait_idle("strict", 20)
    shop.assert_each_once("strict", 1500)
    shop.assert_order("strict", by=lambda line: line.partition)
    assert_nobody_was_thought_dead(worker)


# ---------------------------------------------------------------------- the broker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A broker of its own, beside the server of the bus."""
    with valkey_server(tmp_path / "broker") as server:
        yield server


@pytest.mark.timeout(400)
def test_consuming_goes_on_while_the_broker_is_away_and_after_it_came_and_went(
    shop: Shop, broker: EmbeddedServer
) -> None:
    shop.environment["CELERY_BROKER_URL"] = broker_url(broker.url)
    shop.publish("keyed", 300, sleep=0.01)
    worker = shop.worker("one", *TWO_SLICES).wait_ready()
    shop.wait_lines(50)

    # When the broker goes away in the middle of the work
    broker.kill()
    shop.publish("keyed", 300, first=300, sleep=0.01)

    # Then what there is, and what comes, is consumed without it
    shop.wait_lines(600, timeout=90)
    shop.wait_idle("keyed", 90)

    # And when it comes and goes, that is so as well
    for flap in range(10):
        broker.start()
        shop.publish("keyed", 60, first=600 + 60 * flap, sleep=0.005)
        shop.wait_lines(600 + 60 * flap + 30, timeout=90)
        broker.kill()
    broker.start()
    shop.publish("keyed", 100, first=1200)
    shop.wait_idle("keyed", 90)
    shop.assert_each_once("keyed", 1300)
    shop.assert_order("keyed", by=lambda line: line.key)
    assert {line.attempt for line in shop.lines("start")} == {1}

    # And it stops cleanly, whether its broker is there or not
    broker.kill()
    shop.publish("keyed", 10, first=1300)
    shop.wait_lines(1310, timeout=90)
    worker.signal(signal.SIGTERM)
    assert worker.wait(90) == 0
