"""`message_id`: one message however often it is published, within the window."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from bus.client import Bus
from bus.errors import BusFull, InvalidMessage, PublishUncertain
from bus.format.partition import partition_of
from bus.streams.embedded import EmbeddedServer
from tests.proxy import Proxy

PARTITIONS = 8


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders", partitions=PARTITIONS)
    yield bus
    bus.close()


def stored(bus: Bus) -> list[bytes]:
    """The values of all messages."""
    streams = [bus.keys.partition("orders", number).stream for number in range(PARTITIONS)]
    return [fields[1] for stream in streams for _, fields in bus.client.call("XRANGE", stream, "-", "+")]


@pytest.mark.both_servers
def test_a_second_publish_returns_the_first_receipt(bus: Bus) -> None:
    first = bus.publish("orders", {"n": 1}, message_id="order-991")
    second = bus.publish("orders", {"n": 2}, message_id="order-991")
    assert not first.duplicate
    assert second.duplicate
    assert (second.topic, second.partition, second.id) == (first.topic, first.partition, first.id)
    assert stored(bus) == [b'{"n":1}']


def test_without_a_key_the_id_decides_the_partition(bus: Bus) -> None:
    receipts = [bus.publish("orders", 1, message_id="order-991") for _ in range(5)]
    assert {receipt.partition for receipt in receipts} == {partition_of("order-991", PARTITIONS)}
    assert bus.publish("orders", 1, key="A1", message_id="x").partition == partition_of("A1", PARTITIONS)


def test_an_id_is_known_for_the_window_and_no_longer(server: EmbeddedServer, prefix: str) -> None:
    bus = Bus(server.url, prefix=prefix, dedupe_window=37)
    bus.topic("orders")
    bus.publish("orders", 1, message_id="a")
    key = bus.keys.partition("orders", 0).once("a")
    assert 30 < bus.client.call("TTL", key) <= 37
    # When the window is over
    bus.client.call("DEL", key)
    # Then the same id is a new message
    assert not bus.publish("orders", 1, message_id="a").duplicate
    bus.close()


def test_many_publishers_of_one_id_store_one_message(bus: Bus) -> None:
    receipts = []
    start = threading.Barrier(8)

    def publish() -> None:
        start.wait()
        for number in range(50):
            receipts.append(bus.publish("orders", number, message_id=f"id-{number}"))

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, stored(bus))) == list(range(50))
    assert sum(not receipt.duplicate for receipt in receipts) == 50
    assert len({(receipt.partition, receipt.id) for receipt in receipts}) == 50


def test_two_hundred_lost_replies_double_nothing(server: EmbeddedServer, bus: Bus) -> None:
    # Given a network that loses the reply to every second publish
    with Proxy(server.url) as proxy:
        proxied = Bus(proxy.url, prefix=bus.settings.prefix)
        proxied.topic("orders", partitions=PARTITIONS)
        proxied.publish("orders", -1, message_id="the first")
        ledger = [-1]
        # When each message whose fate is unknown is published again under its id
        for number in range(200):
            proxied.registry.spec("orders")  # known for the next seconds: only replies to publishes are lost
            proxy.loses = "replies"
            with pytest.raises(PublishUncertain, match="message_id"):
                proxied.publish("orders", number, message_id=f"id-{number}")
            proxy.loses = "nothing"
            receipt = proxied.publish("orders", number, message_id=f"id-{number}")
            assert receipt.duplicate
            ledger.append(number)
        proxied.close()
    # Then the stream is the ledger
    assert proxy.dropped == 200
    assert sorted(map(int, stored(bus))) == ledger


@pytest.mark.both_servers
def test_an_id_is_known_after_a_restart_of_the_server(own_server: EmbeddedServer, prefix: str) -> None:
    bus = Bus(own_server.url, prefix=prefix)
    bus.topic("orders", partitions=PARTITIONS)
    first = bus.publish("orders", 1, message_id="a")
    own_server.stop()
    own_server.start()
    second = bus.publish("orders", 1, message_id="a")
    assert second.duplicate
    assert second.id == first.id
    bus.close()


@pytest.mark.both_servers
def test_a_full_memory_refuses_new_ids_and_answers_known_ones(bus: Bus) -> None:
    first = bus.publish("orders", 1, message_id="a")
    bus.client.call("CONFIG", "SET", "maxmemory", 1)
    try:
        assert bus.publish("orders", 1, message_id="a").id == first.id
        with pytest.raises(BusFull):
            bus.publish("orders", 2, message_id="b")
        with pytest.raises(BusFull):
            bus.publish("orders", 3, message_id="c", delay=60)
    finally:
        bus.client.call("CONFIG", "SET", "maxmemory", 0)
    assert stored(bus) == [b"1"]
    # And what was refused has left no trace: the id is free
    assert not bus.publish("orders", 2, message_id="b").duplicate
    assert not bus.publish("orders", 3, message_id="c", delay=60).duplicate


@pytest.mark.both_servers
def test_a_stream_that_vanished_is_made_again_for_an_id_too(bus: Bus) -> None:
    bus.publish("orders", 1, key="A1")
    bus.client.call("DEL", bus.keys.partition("orders", 1).stream)
    assert bus.publish("orders", 2, key="A1", message_id="a").partition == 1
    bus.client.call("DEL", bus.keys.partition("orders", 1).stream)
    assert bus.publish("orders", 3, key="A1", message_id="b", delay=60).id == "d1"


@pytest.mark.both_servers
def test_messages_of_a_partition_are_stored_once_together(bus: Bus) -> None:
    bus.publish("orders", 0)
    messages = [(f"row-{number}", [b"v", b"%d" % number]) for number in range(500)]
    first = bus.publisher.send_deduped("orders", 3, messages[:300], window=60)
    again = bus.publisher.send_deduped("orders", 3, messages, window=60)
    assert [receipt.duplicate for receipt in again] == [True] * 300 + [False] * 200
    assert [receipt.id for receipt in again[:300]] == [receipt.id for receipt in first]
    stream = bus.client.call("XRANGE", bus.keys.partition("orders", 3).stream, "-", "+")
    assert [int(fields[1]) for _, fields in stream][-500:] == list(range(500))


@pytest.mark.parametrize("message_id", ["", "x" * 201, 7, "\ud800", b"a"])
def test_a_bad_message_id_is_refused(bus: Bus, message_id: object) -> None:
    with pytest.raises(InvalidMessage, match="message_id"):
        bus.publish("orders", 1, message_id=message_id)  # type: ignore[arg-type]
    assert stored(bus) == []
