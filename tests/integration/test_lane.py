"""Slices over real lanes: whatever fails, nothing is lost and no message of a key overtakes another.

One worker in this process: the real scheduler plans, real slices run, and between them stand two "pool
processes" (each with what it remembers of lanes), of which either may die, as may any connection.
"""

from __future__ import annotations

import itertools
import random
import time
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workers.slices.handling
import workers.slices.slice
from bus.client import Bus
from bus.consuming.subscriptions import Subscription, Subscriptions
from bus.errors import Reject, ReplyLost, Retry
from bus.format.lane_id import LaneId
from bus.streams import commands
from bus.streams.connect import Endpoint
from bus.streams.wire import Link
from bus.topics.registry import GroupSpec
from bus.values import RetryPolicy, TopicSpec
from workers.progress import Progress
from workers.scheduling.scheduler import Scheduler
from workers.slices.dispatch import Dispatcher
from workers.slices.slice import Runtime, Slice

TOPIC, GROUP = "orders", "stock"


class Killed(SystemExit):
    """The pool process dies in the middle of a message: nothing that runs there goes on."""

    now = False

    def __init__(self):
        super().__init__()
        Killed.now = True


class CuttingEndpoint(Endpoint):
    """Makes connections that break when `cut` says so: "before" anything arrives, or "after" all was done."""

    def __init__(self, url, cut):
        super().__init__(url)

        class Cutting(Link):
            __slots__ = ()

            def send(self, packed, replies):
                how = cut()
                if how == "before":
                    self.close()
                    raise ReplyLost("cut before it arrived")
                super().send(packed, replies)
                if how == "after":
                    for _ in range(self.pending):
                        Link.receive(self)
                    self.close()
                    raise ReplyLost("cut after it was done")

        self._cutting = Cutting

    def connect(self, *, timeout=None):
        link = super().connect(timeout=timeout)
        link.__class__ = self._cutting
        return link


_workers = []


class Worker:
    """The scheduler and two pool processes, driven step by step."""

    def __init__(
        self, server, handler, *, partitions=1, ordering="key", batch=None, attempts=50, cut=lambda: None
    ):
        self.prefix = f"t{uuid.uuid4().hex[:10]}"
        self.bus = Bus(server.url, prefix=self.prefix)
        self.bus.registry.project([TopicSpec(name=TOPIC, partitions=partitions)])
        self.bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP, ordering=ordering)])
        self.ordering = ordering
        self.progress = Progress(2)
        self.ahead = 0.0
        self.scheduler = Scheduler(self.progress, 1, "n", clock=lambda: time.monotonic() + self.ahead)
        retry = RetryPolicy(attempts=attempts, delay=0, jitter=0)
        self.subscription = Subscription(
            topic=TOPIC, group=GROUP, handler=handler, ordering=ordering, batch=batch, retry=retry
        )
        self.processes = [self._process(server.url, cut) for _ in range(2)]
        self._tokens = itertools.count(1)
        self.slice = None
        self.gone = False
        """A slice has found that a stream or a group has vanished."""
        _workers.append(self)

    def _process(self, url, cut):
        bus = Bus(url, prefix=self.prefix)
        bus.__dict__["endpoint"] = CuttingEndpoint(url, cut)
        table = Subscriptions()
        table.add(self.subscription)
        runtime = Runtime(bus, table, self.progress, "n")
        runtime.dispatchers[TOPIC, GROUP] = Dispatcher(self.subscription, is_ending=lambda: Killed.now)
        return runtime

    def lane(self, partition, name="0"):
        return LaneId(TOPIC, partition, GROUP, name)

    def keys(self, partition=0):
        return self.bus.keys.partition(TOPIC, partition)

    def acquire(self, *lanes, suspect=False):
        """Take these lanes, from whomever: their leases change, and what ran there is stale."""
        for id in lanes:
            self.scheduler.lost(id)
            keys = self.keys(id.partition)
            lease = keys.lease(GROUP, id.lane)
            new = f"me:{next(self._tokens)}"
            old = self.bus.client.call("GET", lease) or b""
            reply = commands.run(
                self.bus.client, "lease",
                [lease, keys.stream, keys.state(GROUP), keys.retry(GROUP), keys.held(GROUP)],
                [old, new, GROUP, id.lane, "1" if suspect else ""],
            )  # fmt: skip
            assert reply[0] == 1
            self.scheduler.add(id, new, self.ordering)

    def step(self, process=0):
        """Run one slice in one of the processes; False if there is nothing to do."""
        self.scheduler.wake_due()
        orders = self.scheduler.next_slices(1)
        if not orders:
            return False
        (order,) = orders
        self.progress.want(order.slot)  # so that it does not linger
        self.slice = order
        died = None
        try:
            Slice(self.processes[process], order).run()
        except Killed:
            died = "worker lost"
            self.processes[process].lanes.clear()
        finally:
            Killed.now = False
        self.gone |= self.scheduler.ended(order.slot, died=died).gone
        return True

    def repair(self):
        """As the keeper of leases does where something has vanished."""
        self.gone = False
        self.bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP, ordering=self.ordering)])

    def wake(self):
        self.ahead += 10
        self.scheduler.wake(list(self.scheduler.watched()))

    def outstanding(self):
        """Messages that the group has not settled."""
        total = 0
        for partition in range(self.bus.registry.spec(TOPIC).partitions):
            stream = self.keys(partition).stream
            (group,) = [commands.fields_of(each) for each in self.bus.client.call("XINFO", "GROUPS", stream)]
            last = group["last-delivered-id"].decode()
            total += group["pending"] + len(self.bus.client.call("XRANGE", stream, f"({last}", "+"))
        return total

    def run_dry(self, choose=lambda: 0, limit=400):
        """Until all is settled; fails if it is not after so many rounds."""
        for _ in range(limit):
            while self.step(choose()):
                pass
            if not self.outstanding():
                return
            self.wake()
        raise AssertionError(f"{self.outstanding()} messages are stuck")

    def close(self):
        for runtime in self.processes:
            if link := runtime.take_link():
                link.close()
            runtime.bus.close()
        self.bus.close()

    def publish(self, count, keys=3, first=0):
        """Numbers from `first`; returns their ids, which are unique within a partition."""
        numbers = range(first, first + count)
        return [self.bus.publish(TOPIC, number, key=f"k{number % keys}").id for number in numbers]


@pytest.fixture(autouse=True)
def around(monkeypatch, caplog):
    """No waiting before a new connection, no lines about failures that are meant; all is closed after."""
    for module in (workers.slices.slice, workers.slices.handling):
        monkeypatch.setattr(module, "pause", lambda _seconds: None)
    caplog.set_level("CRITICAL", logger="jitney.workers")
    Killed.now = False
    yield
    while _workers:
        _workers.pop().close()


def assert_in_order(handled, ordering):
    """First successes of one key (or partition) came in the order in which they were published."""
    seen = {}
    for message in handled:
        place = message.key if ordering == "key" else message.partition
        first = seen.setdefault(place, [])
        if message.value not in first:
            first.append(message.value)
    for numbers in seen.values():
        assert numbers == sorted(numbers)


# ---------------------------------------------------------------------- everything at once


class Fate:
    """What goes wrong, and when, from one seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.on = True
        self.handled = []
        self.worker = None

    def chance(self, probability):
        return self.on and self.random.random() < probability

    def cut(self):
        return self.random.choice(["before", "after"]) if self.chance(0.06) else None

    def handle(self, message):
        if self.chance(0.15):
            raise ValueError("again")
        if self.chance(0.03):
            raise Killed
        if self.chance(0.03):
            self.worker.progress.revoke(self.worker.slice.slot)
        if self.chance(0.02):
            self.worker.acquire(*self.worker.scheduler.owned())
        self.handled.append(message)

    def handle_batch(self, batch):
        """Messages that fail are tried again, by themselves or with the whole batch; sometimes the handler
        has made a list of the batch before."""
        for message in list(batch) if self.chance(0.1) else batch:
            try:
                self.handle(message)
            except ValueError:
                if self.chance(0.3):
                    raise
                batch.retry(message, delay=0)


@pytest.mark.both_servers
@pytest.mark.parametrize(
    ("ordering", "batch"),
    [("key", None), ("partition", None), ("key", 4), ("key", 30), ("partition", 30), ("none", None)],
)
@settings(
    max_examples=15, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(seed=st.integers(0, 2**32))
def test_whatever_fails_all_are_handled_and_first_successes_keep_their_order(server, ordering, batch, seed):
    fate = Fate(seed)
    handler = fate.handle if batch is None else fate.handle_batch
    worker = fate.worker = Worker(server, handler, partitions=2, ordering=ordering, batch=batch, cut=fate.cut)
    names = ("0",) if ordering != "none" else ("me.0", "me.1")
    worker.acquire(*(worker.lane(partition, name) for partition in range(2) for name in names))
    for first in (0, 20, 40):
        worker.publish(20, first=first)
        for _ in range(fate.random.randrange(1, 12)):
            worker.step(fate.random.randrange(2)) or worker.wake()
            if fate.chance(0.1):
                worker.acquire(*worker.scheduler.owned(), suspect=fate.random.random() < 0.5)
    fate.on = False
    worker.run_dry(lambda: fate.random.randrange(2))
    assert {message.value for message in fate.handled} == set(range(60))
    if ordering != "none":
        assert_in_order(fate.handled, ordering)
    for partition in range(2):
        keys = worker.keys(partition)
        assert worker.bus.client.call("ZCARD", keys.retry(GROUP)) == 0
        assert worker.bus.client.call("ZCARD", keys.held(GROUP)) == 0


@pytest.mark.both_servers
@pytest.mark.parametrize("batch", [None, 1], ids=["singly", "in batches of one"])
@pytest.mark.parametrize("ordering", ["key", "none"])
@settings(
    max_examples=15, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(seed=st.integers(0, 2**32))
def test_whoever_dies_beside_it_no_message_has_more_attempts_than_it_is_allowed(
    server, ordering, batch, seed
):
    # Given messages that fail, are rejected and kill their process, all mixed, and connections that break
    fate, runs, ends = Fate(seed), {}, {}

    def handle(message):
        number = message.value
        runs[number] = runs.get(number, 0) + 1
        assert message.attempt == runs[number]
        if number % 5 == 0:
            ends[number] = "rejected"
            raise Reject("never")
        if number % 5 == 1:
            raise ValueError("again")
        if number % 5 == 2 and fate.chance(0.6):
            raise Killed
        ends[number] = "done"

    worker = fate.worker = Worker(
        server,
        handle if batch is None else lambda batch: handle(batch[0]),
        ordering=ordering,
        batch=batch,
        attempts=3,
        cut=fate.cut,
    )
    worker.acquire(worker.lane(0, "0" if ordering != "none" else "me.0"))
    worker.publish(30, keys=7)
    # When all is handled, by either process
    worker.run_dry(lambda: fate.random.randrange(2))
    # Then each was tried as often as it may be: those that can never succeed once, those that fail three
    # times
    for number in range(30):
        assert runs[number] <= 3
        if number % 5 in (0, 3, 4):
            assert runs[number] == 1, number
        if number % 5 == 1:
            assert runs[number] == 3, number
    dead = [
        commands.fields_of(each[1])
        for each in worker.bus.client.call("XRANGE", worker.keys().dead(GROUP), "-", "+")
    ]
    assert len(dead) == 30 - sum(1 for each in ends.values() if each == "done")


# ---------------------------------------------------------------------- one thing at a time


def test_a_slice_that_must_stop_leaves_no_lane_of_its_batch_behind(server):
    # Given a slice over several lanes, with a batch of messages of each in hand
    handled = []

    def handler(message):
        handled.append(message.value)
        if len(handled) == 40:
            # When it is asked to stop while the first of them is handled
            worker.progress.revoke(worker.slice.slot)

    worker = Worker(server, handler, partitions=4)
    worker.acquire(*(worker.lane(partition) for partition in range(4)))
    worker.publish(4, keys=4)
    worker.run_dry()
    worker.publish(400, keys=50, first=4)
    worker.wake()
    # Then everything is handled all the same, and nothing twice
    worker.run_dry(limit=5)
    assert len(handled) == len(set(handled)) == 404


def test_a_batch_that_is_delivered_one_by_one_and_must_stop_is_not_left_behind(server):
    alone = []

    def handler(batch):
        if len(batch) > 1:
            raise ValueError("one of you")
        alone.append(batch[0].id)
        if len(alone) == 2:
            worker.progress.revoke(worker.slice.slot)

    worker = Worker(server, handler, batch=10)
    worker.acquire(worker.lane(0))
    worker.publish(5, keys=1)
    worker.run_dry(limit=5)
    assert len(alone) == len(set(alone)) == 5


def test_messages_that_wait_behind_a_trimmed_head_go_on(server):
    # Given a failing message with others of its key held back behind it
    handled, fail = [], [True]

    def handler(message):
        if fail[0] and message.value == 0:
            fail[0] = False
            raise ValueError("later")
        handled.append(message.value)

    worker = Worker(server, handler)
    worker.acquire(worker.lane(0))
    ids = worker.publish(4, keys=1)
    assert worker.step()
    # When it is trimmed away, and the worker is killed just after it has found that out
    worker.bus.client.call("XTRIM", worker.keys().stream, "MINID", ids[1])
    keys = worker.keys()
    lease = worker.bus.client.call("GET", keys.lease(GROUP, "0"))
    commands.run(
        worker.bus.client, "due",
        [keys.stream, keys.lease(GROUP, "0"), keys.retry(GROUP), keys.state(GROUP)],
        [lease, GROUP, "0", 500, "0"],
    )  # fmt: skip
    worker.acquire(worker.lane(0), suspect=True)
    # Then the others are handled, in order
    handled.clear()
    worker.run_dry(limit=5)
    assert [number for number in handled if number] == [1, 2, 3]


def test_a_message_that_kills_whole_workers_ends_as_a_dead_letter(server):
    runs = []

    def handler(message):
        if message.value == 1:
            runs.append(message.attempt)
            raise Killed

    worker = Worker(server, handler, attempts=3)
    worker.acquire(worker.lane(0))
    worker.publish(3, keys=1)
    for _ in range(8):
        # Each time the whole worker dies: nothing of its memory is left, and its lane is taken over
        orders = worker.scheduler.next_slices(1)
        if orders:
            worker.progress.want(orders[0].slot)
            try:
                Slice(worker.processes[0], orders[0]).run()
            except Killed:
                worker.processes[0].lanes.clear()
            Killed.now = False  # what comes next is another process
            worker.scheduler.ended(orders[0].slot, died="worker lost")
        worker.acquire(worker.lane(0), suspect=True)
    assert worker.bus.client.call("XLEN", worker.keys().dead(GROUP)) == 1
    assert len(runs) <= 4


def test_a_retrying_message_that_kills_whole_workers_ends_as_a_dead_letter_too(server):
    runs = []

    def handler(message):
        runs.append(message.attempt)
        if message.attempt == 1:
            raise ValueError("first it only fails")
        raise Killed

    worker = Worker(server, handler, attempts=3)
    worker.acquire(worker.lane(0))
    worker.publish(1, keys=1)
    for _ in range(10):
        worker.scheduler.wake_due()
        orders = worker.scheduler.next_slices(1)
        if orders:
            worker.progress.want(orders[0].slot)
            try:
                Slice(worker.processes[0], orders[0]).run()
            except Killed:
                worker.processes[0].lanes.clear()
            Killed.now = False  # what comes next is another process
            worker.scheduler.ended(orders[0].slot, died="worker lost")
        worker.acquire(worker.lane(0), suspect=True)
    assert worker.bus.client.call("XLEN", worker.keys().dead(GROUP)) == 1
    assert len(runs) <= 5


def test_a_suspect_that_kills_a_pool_process_is_counted_once(server):
    runs = []

    def handler(message):
        runs.append(message.attempt)
        if len(runs) <= 2:
            raise Killed

    worker = Worker(server, handler, attempts=10)
    worker.acquire(worker.lane(0))
    worker.publish(1)
    worker.step()
    worker.acquire(worker.lane(0), suspect=True)
    worker.run_dry(limit=5)
    assert runs[1:] == sorted(set(runs[1:]))
    assert runs[-1] - runs[-2] == 1


def test_a_handler_that_exits_the_process_harms_only_its_own_message(server):
    def handler(message):
        if message.value == 1:
            raise SystemExit(1)
        handled.append(message.value)

    handled = []
    worker = Worker(server, handler, attempts=3)
    worker.acquire(worker.lane(0))
    worker.publish(3, keys=1)
    for _ in range(10):
        worker.scheduler.wake_due()
        try:
            worker.step()
        except SystemExit:
            # As the main process does when a pool process is gone: a slice that ends says so in its slot
            slot = worker.slice.slot
            gone = not worker.progress.read(slot).reports
            worker.scheduler.ended(slot, died="worker lost" if gone else None)
        worker.ahead += 10
    assert handled == [0, 2]
    assert worker.bus.client.call("XLEN", worker.keys().dead(GROUP)) == 1


def test_an_error_text_that_is_not_utf_8_does_not_stop_the_lane(server):
    def handler(message):
        if message.value == 0:
            raise Reject("a\udcffb")

    worker = Worker(server, handler)
    worker.acquire(worker.lane(0))
    worker.publish(2, keys=1)
    worker.run_dry(limit=3)
    assert worker.bus.client.call("XLEN", worker.keys().dead(GROUP)) == 1


def test_a_retry_in_a_group_that_was_made_again_still_counts_its_attempts(server):
    # Given a message that waits for its retry, and a group that somebody destroys and makes again
    runs = []

    def handler(message):
        runs.append(message.attempt)
        raise ValueError("no")

    worker = Worker(server, handler, attempts=3)
    worker.acquire(worker.lane(0))
    worker.publish(1)
    orders = worker.scheduler.next_slices(1)
    worker.processes[0].dispatchers[TOPIC, GROUP] = Dispatcher(
        Subscription(
            topic=TOPIC, group=GROUP, handler=handler, retry=RetryPolicy(attempts=3, delay=0.3, jitter=0)
        )
    )
    worker.progress.want(orders[0].slot)
    Slice(worker.processes[0], orders[0]).run()
    worker.scheduler.ended(orders[0].slot)
    stream = worker.keys().stream
    worker.bus.client.call("XGROUP", "DESTROY", stream, GROUP)
    worker.bus.client.call("XGROUP", "CREATE", stream, GROUP, "$")
    deadline = time.monotonic() + 5
    worker.processes[0].dispatchers[TOPIC, GROUP] = Dispatcher(worker.subscription)
    while time.monotonic() < deadline and len(runs) < 20:
        if not worker.step():
            worker.wake()
        if worker.bus.client.call("XLEN", worker.keys().dead(GROUP)):
            break
    # Then it becomes a dead letter after its attempts, and does not run for ever
    assert runs == [1, 2, 3]


def test_a_slice_ends_in_time_though_its_handler_has_become_slow(server):
    # Given a lane with a long page of left-overs, and a handler of 50 ms
    started = []

    def handler(message):
        started.append(time.monotonic())
        time.sleep(0.05)

    worker = Worker(server, handler)
    worker.acquire(worker.lane(0))
    worker.publish(100, keys=1)
    keys = worker.keys()
    worker.bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "COUNT", 100, "STREAMS", keys.stream, ">")
    assert worker.step()
    assert started[-1] - started[0] < 2.5


def test_an_endless_backlog_of_held_messages_is_released_in_order_after_a_lost_reply(server):
    # Given more messages behind a failing one than are released at once
    handled, state = [], {"fail": True, "cut": False}

    def handler(message):
        if message.value == 0 and state["fail"]:
            raise Retry(delay=0.5)
        handled.append(message.value)
        if message.value == 0:
            state["cut"] = True

    def cut():
        if state["cut"]:
            state["cut"] = False
            return "after"
        return None

    worker = Worker(server, handler, cut=cut)
    worker.acquire(worker.lane(0))
    worker.publish(300, keys=1)
    for _ in range(100):
        if worker.bus.client.call("ZCARD", worker.keys().held(GROUP)) == 299:
            break
        worker.step() or worker.wake()
    assert worker.bus.client.call("ZCARD", worker.keys().held(GROUP)) == 299
    state["fail"] = False
    # When the reply is lost to the turn that settles it
    deadline = time.monotonic() + 20
    while worker.outstanding() and time.monotonic() < deadline:
        worker.step() or worker.wake()
    assert handled == list(range(300))
