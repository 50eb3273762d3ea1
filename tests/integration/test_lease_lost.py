"""The signal `lease_lost`: whatever its receivers do, a worker goes on and repairs what is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.format.lane_id import LaneId
from bus.signals import lease_lost
from bus.streams.embedded import EmbeddedServer
from tests.integration.inline import InlineWorker
from tests.integration.views import Clock, Seer
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_database")

LANE = LaneId("orders", 0, "stock")


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders", partitions=1)
    bus.registry.project(bus.declared.specs().values())
    yield bus
    bus.close()


@pytest.fixture(params=[ValueError("no"), SystemExit(3)], ids=["raises", "exits"])
def heard(request: pytest.FixtureRequest) -> Iterator[list[tuple[type, LaneId]]]:
    """What the project's receiver was told, as (sender, lane). It raises each time."""
    heard: list[tuple[type, LaneId]] = []

    def receiver(sender: type, lane: LaneId, **_: Any) -> None:
        heard.append((sender, lane))
        raise request.param

    lease_lost.connect(receiver)
    yield heard
    lease_lost.disconnect(receiver)


def test_a_look_goes_on_when_a_receiver_of_the_signal_fails(
    bus: Bus, heard: list[tuple[type, LaneId]]
) -> None:
    # Given a worker that holds a lane
    worker = Seer(bus, {"orders/stock"}, Clock())
    worker.look()
    assert worker.scheduler.owned().keys() == {LANE}
    # When its lease is removed, and the receiver raises as it is told
    bus.client.call("DEL", bus.keys.partition("orders", 0).lease("stock", "0"))
    worker.look()
    assert [lane for _, lane in heard] == [LANE]
    # Then the look comes to its end, and the next one takes the lane again
    worker.look()
    assert worker.scheduler.owned().keys() == {LANE}


def test_a_lost_group_is_made_again_when_a_receiver_of_the_signal_fails(
    bus: Bus, heard: list[tuple[type, LaneId]], transactional_db: None
) -> None:
    # Given a worker whose lease and group are removed while it handles a message
    handled: list[int] = []
    keys = bus.keys.partition("orders", 0)

    def handle(message: Any) -> None:
        handled.append(message.value)
        if message.value == 1:
            bus.client.call("DEL", keys.lease("stock", "0"))
            bus.client.call("XGROUP", "DESTROY", keys.stream, "stock")

    with InlineWorker(bus, [Subscription(topic="orders", group="stock", handler=handle)]):
        bus.publish("orders", 1)
        wait_until(lambda: heard, what="the signal")
        # When a message comes after that
        bus.publish("orders", 2)
        # Then it is handled
        wait_until(lambda: 2 in handled, timeout=30, what="the message after the loss")
