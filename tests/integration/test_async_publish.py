"""`apublish` and `apublish_many`: the same messages, and a loop that is never blocked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from bus.client import Bus
from bus.errors import BusUnavailable, InvalidMessage, UnknownTopic
from bus.streams.embedded import EmbeddedServer
from tests import loops

PARTITIONS = 8


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders", partitions=PARTITIONS)
    yield bus
    bus.close()


def numbers(bus: Bus, topic: str = "orders") -> list[list[int]]:
    partitions = bus.registry.spec(topic).partitions
    streams = [bus.keys.partition(topic, number).stream for number in range(partitions)]
    return [
        [int(fields[1]) for _, fields in bus.client.call("XRANGE", stream, "-", "+")] for stream in streams
    ]


def test_a_message_is_published_and_its_receipt_awaited(bus: Bus) -> None:
    receipt = loops.run(bus.apublish("orders", 1, key="A1", headers={"a": "b"}, message_id="x"))
    again = loops.run(bus.apublish("orders", 2, key="A1", message_id="x"))
    assert (receipt.topic, receipt.partition, receipt.duplicate) == ("orders", 1, False)
    assert (again.id, again.duplicate) == (receipt.id, True)


def test_a_thousand_tasks_publish_at_once(bus: Bus) -> None:
    async def run() -> None:
        await asyncio.gather(*(bus.apublish("orders", number) for number in range(1000)))

    loops.run(run())
    assert sorted(number for numbers_ in numbers(bus) for number in numbers_) == list(range(1000))


def test_many_keep_their_order_from_a_list_and_from_an_asynchronous_source(bus: Bus) -> None:
    async def source() -> AsyncIterator[int]:
        for number in range(5000, 10_000):
            yield number

    async def run() -> None:
        orders = bus.topic("orders", partitions=PARTITIONS)
        assert await orders.apublish_many(range(5000), key=lambda n: f"k{n % 50}") == 5000
        assert await bus.apublish_many("orders", source(), key=lambda n: f"k{n % 50}") == 5000

    loops.run(run())
    assert sorted(number for numbers_ in numbers(bus) for number in numbers_) == list(range(10_000))
    assert all(each == sorted(each) for each in numbers(bus))


def test_a_full_buffer_is_awaited(bus: Bus) -> None:
    async def run() -> int:
        buffer = bus.async_publisher._producer._buffer
        buffer._limits = replace(buffer._limits, buffer_messages=10)
        return await bus.apublish_many("orders", range(1000), key=str)

    assert loops.run(run()) == 1000


def test_errors_come_as_from_publish(bus: Bus) -> None:
    async def run() -> None:
        with pytest.raises(InvalidMessage):
            await bus.apublish("orders", object())
        with pytest.raises(UnknownTopic):
            await bus.apublish("ordres", 1)
        with pytest.raises(InvalidMessage) as caught:
            await bus.apublish_many("orders", [*range(10), object()])
        assert "10 messages" in caught.value.__notes__[0]

    loops.run(run())
    assert sorted(number for numbers_ in numbers(bus) for number in numbers_) == list(range(10))


def test_the_loop_goes_on_while_redis_does_not_answer(own_server: EmbeddedServer, prefix: str) -> None:
    # Given a frozen server, and a topic that was never asked for
    bus = Bus(own_server.url, prefix=prefix, timeout=3)
    bus.topic("orders")
    own_server.freeze()

    # When a message is published
    async def run() -> int:
        task = asyncio.ensure_future(bus.apublish("orders", 1))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(BusUnavailable):
            await task
        return turns

    # Then the loop turned all the time
    turns = loops.run(run())
    own_server.thaw()
    bus.close()
    assert turns > 10


def test_one_bus_serves_one_loop_after_the_other(bus: Bus) -> None:
    for number in range(3):
        loops.run(bus.apublish("orders", number))
    assert sorted(number for numbers_ in numbers(bus) for number in numbers_) == [0, 1, 2]


def test_a_cancelled_task_leaves_the_publisher_in_order(bus: Bus) -> None:
    async def run() -> None:
        task = asyncio.ensure_future(bus.apublish("orders", 1))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await bus.apublish("orders", 2)

    loops.run(run())
    assert 2 in [number for numbers_ in numbers(bus) for number in numbers_]
