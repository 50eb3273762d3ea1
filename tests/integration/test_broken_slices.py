"""A bug of Jitney itself, somewhere in a slice: what was handled stays so, and no lane stands still."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bus import observe
from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.consuming.turn import Turns
from bus.errors import ServerError
from bus.format.lane_id import LaneId
from bus.operating import deadletters
from bus.safety.complaints import Complaints
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.values import Message, RetryPolicy
from tests.integration.inline import InlineWorker
from tests.waiting import wait_until
from workers import consumer
from workers.order import SliceOrder
from workers.slices import failures
from workers.slices import slice as slices
from workers.slices.slice import run

pytestmark = pytest.mark.usefixtures("no_database")

ATTEMPTS = 3
POLICY = RetryPolicy(attempts=ATTEMPTS, delay=0.01, factor=1.0, jitter=0.0)


class Sturdy(InlineWorker):
    """Goes on after a slice that was broken off, as a pool process does."""

    broken = 0

    def _work(self, order: SliceOrder) -> str | None:
        try:
            run(self.consumer.runtime, order)
        except BaseException:
            self.broken += 1
        return None


@pytest.fixture(autouse=True)
def no_earlier_complaints(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (slices, consumer):
        monkeypatch.setattr(module, "bursts", Complaints(module.logger, seconds=1.0))


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders")
    bus.registry.project(bus.declared.specs().values())
    bus.registry.declare_groups([GroupSpec(topic="orders", name="stock")])
    yield bus
    bus.close()


def publish(bus: Bus) -> None:
    """One message that its handler fails with, among others of other keys, and one of its key behind it."""
    for number in range(10):
        bus.publish("orders", number, key=f"k{number}")
    bus.publish("orders", "bad", key="bad")
    for number in range(10, 20):
        bus.publish("orders", number, key=f"k{number}")
    bus.publish("orders", "behind", key="bad")


def is_settled(bus: Bus) -> bool:
    group = observe.group(bus, "orders", "stock")[0]
    return group.lag is not None and group.lag.count == 0 and group.pending == 0


def subscriptions(runs: list[Any]) -> dict[str, Subscription]:
    def take(message: Message) -> None:
        runs.append(message.value)
        if message.value == "bad":
            raise ValueError("no")

    async def take_soon(message: Message) -> None:
        take(message)

    def take_all(batch: Any) -> None:
        for message in batch:
            take(message)

    common: dict[str, Any] = {"topic": "orders", "group": "stock", "retry": POLICY}
    return {
        "single": Subscription(handler=take, **common),
        "async": Subscription(handler=take_soon, **common),
        "batch": Subscription(handler=take_all, batch=50, **common),
    }


def told_to_fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a bug of Jitney")


def test_many_lanes_that_break_at_once_are_one_line_a_second(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given slices of 64 lanes that break in one moment
    now = [0.0]
    monkeypatch.setattr(consumer, "bursts", Complaints(consumer.logger, seconds=1.0, clock=lambda: now[0]))
    ids = [LaneId("orders", number, "stock", "0") for number in range(64)]
    ended = SimpleNamespace(
        free=(), lost=(), gone=False, broken=[SimpleNamespace(id=lane, troubles=1) for lane in ids]
    )
    worker: Any = SimpleNamespace(_membership=object())
    consumer.Consumer._act_on(worker, ended)  # type: ignore[arg-type]
    # Then one line names one of them
    assert [record.getMessage()[:19] for record in caplog.records] == ["orders/0 for stock:"]
    # And the next second's says how many more there were
    now[0] = 1.1
    consumer.Consumer._act_on(worker, ended)  # type: ignore[arg-type]
    assert len(caplog.records) == 2
    assert "63 more like this" in caplog.text


@pytest.mark.parametrize("kind", ["single", "async", "batch"])
@pytest.mark.parametrize("bug", ["record", "tell"])
def test_an_error_while_a_failure_is_recorded_or_told_of_costs_its_message_an_attempt(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str, bug: str
) -> None:
    # Given a bug where a message that failed is recorded, or told of
    monkeypatch.setattr(failures, bug, told_to_fail)
    runs: list[Any] = []
    publish(bus)
    # When one message fails, among others
    with caplog.at_level(logging.ERROR), Sturdy(bus, [subscriptions(runs)[kind]]) as worker:
        wait_until(lambda: is_settled(bus), 30, "all to be settled")
    # Then it has had its attempts, and is a dead letter; what is behind it has run
    (letter,) = deadletters.find(bus, "orders", "stock")
    assert letter.attempts == ATTEMPTS
    counted = Counter(runs)
    if kind == "single":  # in a batch it has also run in the calls that it broke, or that broke
        assert counted["bad"] == ATTEMPTS
    # And nothing else was done twice
    others = [*range(20), "behind"]
    if kind != "batch":
        assert [counted[value] for value in others] == [1] * len(others)
    assert counted["behind"] >= 1
    # And it was said which lane it was
    assert worker.broken >= 1
    assert "orders/0 for stock" in caplog.text
    assert "a bug of Jitney" in caplog.text


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug of Jitney"), SystemExit(3), ServerError("WRONGTYPE told to say so")]
)
def test_what_was_handled_before_a_slice_is_broken_off_is_not_handled_again(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    # Given a turn that breaks, after messages were handled and before they are settled
    sound, broken = Turns.take, []

    def take(self: Turns, count: int) -> Any:
        if any(lane.acks for lane in self.lanes) and not broken:
            broken.append(True)
            raise error
        return sound(self, count)

    monkeypatch.setattr(Turns, "take", take)
    runs: list[Any] = []
    for number in range(20):
        bus.publish("orders", number, key=f"k{number}")
    # When
    with Sturdy(bus, [subscriptions(runs)["single"]]):
        wait_until(lambda: is_settled(bus), 30, "all to be settled")
    # Then
    assert broken
    assert sorted(runs) == list(range(20))


@pytest.mark.parametrize("place", ["__init__", "take"])
def test_slices_that_break_at_once_are_tried_ever_more_rarely(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    # Given a bug that breaks each slice before it has begun, or before it has done anything
    began: list[None] = []

    def broken(*_: Any, **__: Any) -> Any:
        began.append(None)
        raise RuntimeError("a bug of Jitney")

    monkeypatch.setattr(Turns, place, broken)
    publish(bus)
    # When there is work
    with caplog.at_level(logging.ERROR), Sturdy(bus, [subscriptions([])["single"]]) as worker:
        wait_until(lambda: len(began) >= 4, 30, "four slices")
        (lane,) = worker.consumer.scheduler._lanes.values()
        wait_until(lambda: lane.stage == "backing off", 10, "the lane to wait")
        # Then the lane waits longer each time
        assert lane.troubles >= 4
        assert lane.due is not None
        assert lane.due - lane.since > 0.4
    assert "orders/0 for stock" in caplog.text
