"""Another ordering is declared while messages are in hand, wait for retries and are held back.

Real keepers and slices of workers with the old code and the new one, side by side.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from contextlib import ExitStack

import pytest

from bus import doctor, observe
from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.errors import Retry
from bus.streams.commands import fields_of, text
from bus.topics.registry import GroupSpec
from bus.topics.reordering import GroupPartition, read
from bus.values import ORDERINGS, RetryPolicy, id_pair
from tests.integration.inline import InlineWorker
from tests.integration.test_membership import a_dead_process, leave_behind
from tests.waiting import wait_until

TOPIC, GROUP, PARTITIONS, COUNT = "keyed", "g", 2, 40
CHANGES = list(itertools.permutations(ORDERINGS, 2))


class Shop:
    """A topic, a ledger outside of Redis, and workers whose code differs in the ordering alone."""

    def __init__(self, bus):
        self.bus = bus
        bus.topic(TOPIC, partitions=PARTITIONS)
        bus.registry.project(bus.declared.specs().values())
        self.failing = True
        self.lock = threading.Lock()
        self.begun, self.done = [], []
        self.stack = ExitStack()
        self.schedulers = []

    def handle(self, message):
        with self.lock:
            self.begun.append(message)
        if self.failing and message.value % 9 == 0:
            raise Retry(delay=0.3)
        with self.lock:
            self.done.append(message)

    def handle_batch(self, batch):
        for message in batch:
            self.handle(message)

    def code(self, ordering, **more):
        retry = RetryPolicy(attempts=1000)
        known = {"topic": TOPIC, "group": GROUP, "handler": self.handle, "ordering": ordering, "retry": retry}
        return Subscription(**(known | more))

    def start(self, ordering, **more):
        worker = self.stack.enter_context(InlineWorker(self.bus, [self.code(ordering, **more)]))
        self.schedulers.append(worker.consumer.scheduler)
        return worker

    def fetching(self):
        """For each lane, and each that a slice runs on, whether new messages may be fetched there."""
        for scheduler in self.schedulers:
            with scheduler._lock:
                yield from (not lane.closed for lane in scheduler._lanes.values())
                for running in scheduler._slots.running.values():
                    yield from (not order.state.closed for order in running.order.lanes)

    def publish(self, first, count=COUNT):
        self.bus.publish_many(TOPIC, range(first, first + count), key=lambda value: f"k{value % 7}")

    def effects(self):
        places = [(GroupPartition(TOPIC, GROUP, number), None) for number in range(PARTITIONS)]
        return list(read(self.bus, places).values())

    def declared(self):
        return self.bus.registry.groups(TOPIC)[0].ordering

    def count(self, kind):
        keys = [self.bus.keys.partition(TOPIC, number) for number in range(PARTITIONS)]
        return sum(self.bus.client.pipe([("ZCARD", getattr(each, kind)(GROUP)) for each in keys]))

    def given(self):
        """The values that the group has been given, also those that are held back and have not begun."""
        found = set()
        for number in range(PARTITIONS):
            stream = self.bus.keys.partition(TOPIC, number).stream
            [group] = [fields_of(raw) for raw in self.bus.client.call("XINFO", "GROUPS", stream)]
            entries = self.bus.client.call("XRANGE", stream, "-", group["last-delivered-id"])
            found |= {int(fields_of(entry[1])["v"]) for entry in entries}
        return found

    def lanes(self):
        streams = [self.bus.keys.partition(TOPIC, number).stream for number in range(PARTITIONS)]
        replies = self.bus.client.pipe([("XINFO", "CONSUMERS", stream, GROUP) for stream in streams])
        return {text(fields_of(raw)["name"]) for reply in replies for raw in reply}

    def wait_done(self, count):
        wait_until(lambda: len(self.done) >= count, 40, f"{count} messages", 0.05)

    def assert_each_once(self, count):
        assert Counter(message.value for message in self.done) == dict.fromkeys(range(count), 1)

    def assert_order(self, ordering, values):
        """Successes among these values came in the order of the topic, by key or by partition."""
        seen = {}
        for message in self.done:
            if message.value in values and ordering != "none":
                place = message.key if ordering == "key" else message.partition
                assert id_pair(message.id) > seen.get(place, (0, 0)), message.value
                seen[place] = id_pair(message.id)


@pytest.fixture
def shop(server, prefix, transactional_db):
    bus = Bus(server.url, prefix=prefix)
    shop = Shop(bus)
    yield shop
    shop.stack.close()
    bus.close()


@pytest.mark.both_servers
@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_a_change_waits_until_what_was_given_out_is_settled_and_then_everything_goes_on(shop, before, after):
    # Given a worker with the old code, some of whose messages fail, and others wait behind them
    shop.publish(0)
    old = shop.start(before)
    wait_until(lambda: shop.count("retry") >= PARTITIONS, 30, "messages to fail")
    wait_until(lambda: before != "key" or shop.count("held"), 30, "messages to be held back")

    # When one with the new code starts beside it, and more is published
    shop.start(after)
    wait_until(lambda: shop.declared() == after, 10, "the new ordering to be declared")
    wait_until(lambda: not any(shop.fetching()), 30, "the lanes to fetch nothing new")
    begun = {message.value for message in shop.begun}
    given = shop.given()
    shop.publish(COUNT)

    # Then it waits, and nothing new is given out, while the failing ones are still tried
    tries = len(shop.begun)
    wait_until(lambda: len(shop.begun) > tries + 2 * PARTITIONS, 30, "further attempts")
    assert shop.effects() == [before] * PARTITIONS
    assert {message.value for message in shop.begun} == begun
    seen = observe.group(shop.bus, TOPIC, GROUP)[0]
    assert (seen.former_ordering, seen.ordering) == (before, after)
    assert seen.unsettled >= PARTITIONS
    told = f"until its ordering changes from {before} to {after}"
    assert told in seen.reordering
    assert any(told in finding.text for finding in doctor.examine(shop.bus))

    # And once they succeed it is made, and all is handled, each message once, in order
    shop.failing = False
    shop.wait_done(2 * COUNT)
    assert shop.effects() == [after] * PARTITIONS
    assert observe.group(shop.bus, TOPIC, GROUP)[0].reordering == ""
    assert "ordering" not in {finding.check for finding in doctor.examine(shop.bus)}
    shop.assert_each_once(2 * COUNT)
    shop.assert_order(before, given)
    shop.assert_order(after, set(range(2 * COUNT)) - given)
    if "none" not in (before, after):
        shop.assert_order("key", set(range(2 * COUNT)))

    # And the old code works by the new ordering as well
    shop.publish(2 * COUNT)
    shop.wait_done(3 * COUNT)
    shop.assert_each_once(3 * COUNT)
    shop.assert_order(after, set(range(COUNT, 3 * COUNT)) - given)
    assert old.consumer.scheduler.owned()
    wait_until(lambda: after == "none" or shop.lanes() <= {"0"}, 30, "old names to be gone")


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_a_rolling_restart_in_which_both_codes_declare_their_ordering_in_turn_loses_and_repeats_nothing(
    shop, before, after
):
    # Given workers with the old code, then one with the new, one with the old again, and the new for good
    shop.publish(0)
    with InlineWorker(shop.bus, [shop.code(before)]):
        wait_until(lambda: shop.count("retry") >= PARTITIONS, 30, "messages to fail")
        with InlineWorker(shop.bus, [shop.code(after)]):
            wait_until(lambda: shop.declared() == after, 10, "the new ordering to be declared")
            with InlineWorker(shop.bus, [shop.code(before)]):
                wait_until(lambda: shop.declared() == before, 10, "the old ordering to be declared again")
                shop.publish(COUNT)
                tries = len(shop.begun)
                wait_until(lambda: len(shop.begun) > tries + 2 * PARTITIONS, 30, "further attempts")
                shop.start(after)
                wait_until(lambda: shop.declared() == after, 10, "the new ordering to be declared")
                shop.failing = False
    shop.publish(2 * COUNT)
    shop.wait_done(3 * COUNT)
    shop.assert_each_once(3 * COUNT)
    wait_until(lambda: shop.effects() == [after] * PARTITIONS, 30, "the new ordering")
    if "none" not in (before, after):
        shop.assert_order("key", set(range(3 * COUNT)))


@pytest.mark.parametrize("after", ["key", "partition"])
def test_what_was_pending_in_a_lane_of_a_dead_worker_without_ordering_is_handled_before_the_change(
    shop, after
):
    # Given workers without an ordering that were killed, with messages in hand
    shop.failing = False
    shop.bus.topic("loose", partitions=PARTITIONS)
    shop.bus.registry.project(shop.bus.declared.specs().values())
    declare = shop.bus.registry.declare_groups
    declare(GroupSpec(topic=topic, name=GROUP, ordering="none") for topic in (TOPIC, "loose"))
    shop.bus.publish_many("loose", range(COUNT), key=lambda value: f"k{value % 7}")
    pid = a_dead_process()
    for number in range(12):
        leave_behind(shop.bus, number, pid)
    # When the code that comes has one
    codes = [shop.code(after, topic=topic) for topic in (TOPIC, "loose")]
    shop.stack.enter_context(InlineWorker(shop.bus, codes))
    # Then they are handled, and their lanes go
    shop.wait_done(COUNT)
    shop.assert_each_once(COUNT)
    streams = [shop.bus.keys.partition("loose", number).stream for number in range(PARTITIONS)]

    def only_one_name() -> bool:
        replies = shop.bus.client.pipe([("XINFO", "CONSUMERS", stream, GROUP) for stream in streams])
        return {text(fields_of(raw)["name"]) for reply in replies for raw in reply} <= {"0"}

    wait_until(only_one_name, 30, "old names to be gone")
    assert shop.bus.client.call("EXISTS", *(
        shop.bus.keys.partition("loose", number % PARTITIONS).lease(GROUP, f"short-lived-{number}.0")
        for number in range(12)
    )) == 0  # fmt: skip


def other(shop):
    """The same handler under another name, as after a renaming."""

    def renamed(message):
        shop.handle(message)

    return renamed


@pytest.mark.parametrize(
    ("change", "back"),
    [
        ("removed", True),
        ("batch", True),
        ("batch", False),
        ("atomic", True),
        ("atomic", False),
        ("renamed", False),
    ],
)
def test_a_change_of_the_handlers_under_failing_and_held_messages_loses_and_repeats_nothing(
    shop, change, back
):
    shop.publish(0)
    batch = {"handler": shop.handle_batch, "batch": 5}
    first, then = ({}, batch) if change == "batch" and not back else ({}, {})
    if change == "atomic":
        first, then = ({"atomic": "default"}, {}) if back else ({}, {"atomic": "default"})
    if change == "renamed":
        then = {"handler": other(shop)}
    if change == "batch" and back:
        first = batch
    with InlineWorker(shop.bus, [shop.code("key", **first)]):
        wait_until(lambda: shop.count("retry") >= PARTITIONS, 30, "messages to fail")
        wait_until(lambda: shop.count("held"), 30, "messages to be held back")
    if change == "removed":
        # A worker whose code does not have it; it has another group
        with InlineWorker(shop.bus, [shop.code("key", group="another", handler=lambda message: None)]):
            shop.publish(COUNT)
    else:
        shop.publish(COUNT)
    shop.failing = False
    done = {message.value for message in shop.done}
    shop.start("key", **then)
    shop.wait_done(2 * COUNT)
    if "batch" not in first and "batch" not in then:
        shop.assert_order("key", set(range(2 * COUNT)))
    times = Counter(message.value for message in shop.done)
    assert set(times) == set(range(2 * COUNT))
    # A batch handler that raises is called again for each message: what it did before is done again
    assert {value for value, number in times.items() if number > 1} <= (done if "batch" in first else set())
