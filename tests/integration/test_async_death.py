"""An `async def` handler that ends its process: what ended beside it a moment before stays done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import observe
from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.errors import Reject
from bus.operating import deadletters
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.values import Message, Ordering
from tests.integration.inline import ForkingWorker
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_database")


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders")
    bus.registry.project(bus.declared.specs().values())
    yield bus
    bus.close()


@pytest.mark.parametrize("ordering", ["key", "none"])
@pytest.mark.parametrize("ending", ["done", "rejected"])
def test_what_ended_right_before_another_handler_ended_the_process_never_runs_again(
    bus: Bus, tmp_path: Path, ordering: Ordering, ending: str
) -> None:
    # given handlers of which the last ends its process in the very turn of the loop in which others end
    runs = tmp_path / "runs"

    async def handle(message: Message) -> None:
        with runs.open("a") as file:
            file.write(f"{message.value}\n")
        if message.value == "deadly" and runs.read_text().count("deadly") == 1:
            os._exit(9)
        if message.value != "deadly" and ending == "rejected":
            raise Reject("no")

    bus.registry.declare_groups([GroupSpec(topic="orders", name="stock", ordering=ordering)])
    for number in range(5):
        bus.publish("orders", f"quick {number}", key=str(number))
    bus.publish("orders", "deadly", key="k")
    subscription = Subscription(topic="orders", group="stock", handler=handle, ordering=ordering)

    # when
    with ForkingWorker(bus, [subscription]):
        wait_until(lambda: is_settled(bus), 20, "all to be settled")

    # then
    quick = [f"quick {number}" for number in range(5)]
    assert sorted(runs.read_text().splitlines()) == ["deadly", "deadly", *quick]
    dead = [letter.reason for letter in deadletters.find(bus, "orders", "stock")]
    assert dead == (["no"] * 5 if ending == "rejected" else [])


def is_settled(bus: Bus) -> bool:
    seen = observe.group(bus, "orders", "stock")[0]
    return seen.lag is not None and seen.lag.count == 0 and seen.pending == 0
