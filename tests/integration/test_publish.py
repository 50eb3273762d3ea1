"""Publishing: what is stored, in which order, and what each error promises."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

import pytest

from bus.client import Bus
from bus.errors import BusFull, BusUnavailable, InvalidMessage, PublishUncertain, UnknownTopic
from bus.format.partition import partition_of
from bus.streams import commands
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.values import Receipt
from tests.proxy import Proxy


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    """A bus with the topic "orders" of eight partitions."""
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders", partitions=8)
    yield bus
    bus.close()


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[Proxy]:
    with Proxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: Proxy, bus: Bus) -> Iterator[Bus]:
    """The same bus behind a proxy that can lose requests and replies; it knows the topic already."""
    proxied = Bus(proxy.url, prefix=bus.settings.prefix, timeout=20)
    bus.publish("orders", "the first one")
    proxied.registry.spec("orders")
    yield proxied
    proxied.close()


def stored(bus: Bus, topic: str = "orders") -> dict[int, list[tuple[str, dict[bytes, bytes]]]]:
    """Partition → its entries as (id, fields)."""
    found = {}
    for number in range(bus.registry.spec(topic).partitions):
        reply = bus.client.call("XRANGE", bus.keys.partition(topic, number).stream, "-", "+")
        found[number] = [(id.decode(), dict(zip(raw[::2], raw[1::2], strict=True))) for id, raw in reply]
    return found


def count(bus: Bus) -> int:
    return sum(len(entries) for entries in stored(bus).values())


# ---------------------------------------------------------------------- one


@pytest.mark.both_servers
def test_a_receipt_says_where_the_message_is(bus):
    receipt = bus.publish("orders", {"sku": "A1"}, key="A1", headers={"tenant": "de"})
    assert (receipt.topic, receipt.partition, receipt.duplicate) == ("orders", partition_of("A1", 8), False)
    fields = {b"v": b'{"sku":"A1"}', b"k": b"A1", b"h": b'{"tenant":"de"}'}
    assert stored(bus)[receipt.partition] == [(receipt.id, fields)]


def test_messages_without_a_key_go_round_all_partitions(bus):
    partitions = [bus.publish("orders", number).partition for number in range(16)]
    assert sorted(partitions) == sorted([*range(8), *range(8)])


def test_a_topic_handle_publishes_as_well(bus):
    orders = bus.topic("orders", partitions=8)
    assert orders.publish(1, key="A1").partition == 1
    assert orders.publish_many([1, 2, 3]) == 3
    assert count(bus) == 4


def test_an_unknown_topic_is_refused_and_nothing_is_made(bus):
    with pytest.raises(UnknownTopic, match="There is no topic 'ordres'"):
        bus.publish("ordres", 1)
    with pytest.raises(UnknownTopic):
        bus.publish_many("ordres", [1])
    assert bus.client.call("EXISTS", bus.keys.partition("ordres", 0).stream) == 0


def test_a_declared_topic_needs_no_preparation_by_its_first_publisher(bus):
    assert bus.client.call("EXISTS", bus.keys.topics) == 0
    bus.publish("orders", 1)
    assert bus.registry.specs()["orders"].partitions == 8


@pytest.mark.parametrize("value", [object(), float("nan"), {1: 2}])
def test_a_message_that_cannot_be_published_is_refused_before_anything_is_written(bus, value):
    with pytest.raises(InvalidMessage):
        bus.publish("orders", value)
    assert count(bus) == 0


def test_a_message_that_is_too_long_is_refused(server, prefix):
    bus = Bus(server.url, prefix=prefix, max_message_bytes=100)
    bus.topic("orders")
    with pytest.raises(InvalidMessage, match="at most 100"):
        bus.publish("orders", "x" * 100)
    bus.publish("orders", "x" * 98)
    bus.close()


def test_where_no_server_is_the_error_says_that_nothing_was_written(tmp_path):
    bus = Bus(f"unix://{tmp_path}/nobody.sock", timeout=1)
    bus.topic("orders")
    for publish in (lambda: bus.publish("orders", 1), lambda: bus.publish_many("orders", [1])):
        with pytest.raises(BusUnavailable) as caught:
            publish()
        assert not isinstance(caught.value, PublishUncertain)


@pytest.mark.both_servers
def test_a_full_memory_refuses_the_message(bus):
    bus.publish("orders", 1)
    bus.client.call("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(BusFull, match="maxmemory"):
            bus.publish("orders", 2)
        with pytest.raises(BusFull):
            bus.publish_many("orders", [2, 3])
    finally:
        bus.client.call("CONFIG", "SET", "maxmemory", 0)
    assert count(bus) == 1


# ---------------------------------------------------------------------- a reply that is lost


@pytest.mark.parametrize(("loses", "there"), [("requests", 0), ("replies", 1)])
def test_a_publish_whose_reply_is_lost_is_uncertain_and_stored_at_most_once(
    bus, proxy, proxied, loses, there
):
    # Given a bus whose connection breaks
    proxied.publish("orders", "the second one")
    before = count(bus)
    proxy.loses = loses
    # When a message is published
    with pytest.raises(PublishUncertain, match="may or may not be stored"):
        proxied.publish("orders", "the uncertain one")
    # Then it was sent once: it is there once or not at all
    assert count(bus) - before == there
    assert proxy.dropped == 1
    # And the next one works
    proxy.loses = "nothing"
    proxied.publish("orders", "the next one")
    assert count(bus) - before == there + 1


@pytest.mark.parametrize("loses", ["requests", "replies"])
def test_of_many_messages_each_is_stored_at_most_once_and_every_receipt_is_kept(bus, proxy, proxied, loses):
    # Given a stream of messages that breaks in the middle
    def values() -> Iterator[int]:
        for number in range(5000):
            if number == 2000:
                proxy.loses = loses
            yield number

    # When they are published
    receipts: list[Receipt] = []
    with pytest.raises(PublishUncertain):
        receipts.extend(proxied.publish_iter("orders", values()))
    # Then what has a receipt is stored, and nothing is stored twice
    entries = stored(bus)
    ids = {(partition, id) for partition, rows in entries.items() for id, _ in rows}
    assert {(receipt.partition, receipt.id) for receipt in receipts} <= ids
    bodies = [fields[b"v"] for rows in entries.values() for _, fields in rows]
    assert len(bodies) == len(set(bodies))


# ---------------------------------------------------------------------- what has vanished


@pytest.mark.both_servers
def test_a_stream_that_vanished_is_made_again_with_its_groups(bus):
    # Given a partition with a group, which is deleted behind our back
    bus.publish("orders", "before", key="A1")
    bus.registry.declare_groups([GroupSpec(topic="orders", name="inventory", start="latest")])
    stream = bus.keys.partition("orders", 1).stream
    bus.client.call("DEL", stream)
    # When something is published there
    receipt = bus.publish("orders", "after", key="A1")
    # Then it is stored, and the group is given it
    assert receipt.partition == 1
    assert [fields[b"v"] for _, fields in stored(bus)[1]] == [b'"after"']
    group = commands.fields_of(bus.client.call("XINFO", "GROUPS", stream)[0])
    assert group["name"] == b"inventory"
    reply = bus.client.call("XREADGROUP", "GROUP", "inventory", "0", "STREAMS", stream, ">")
    assert [id.decode() for id, _ in reply[0][1]] == [receipt.id]


def test_many_messages_make_a_stream_again_as_well(bus):
    bus.publish("orders", "before", key="A1")
    bus.registry.declare_groups([GroupSpec(topic="orders", name="inventory")])
    bus.client.call("DEL", bus.keys.partition("orders", 1).stream)
    assert bus.publish_many("orders", range(1200), key=lambda _: "A1") == 1200
    assert [int(fields[b"v"]) for _, fields in stored(bus)[1]] == list(range(1200))
    assert bus.client.call("XINFO", "GROUPS", bus.keys.partition("orders", 1).stream)


def test_a_redis_that_lost_everything_gets_the_declared_topics_again(bus):
    bus.publish("orders", 1)
    for key in bus.client.call("KEYS", f"{bus.settings.prefix}:*"):
        bus.client.call("DEL", key)
    bus.publish("orders", 2)
    assert count(bus) == 1
    assert "orders" in bus.registry.specs()


def test_a_topic_that_was_deleted_is_not_made_again_by_a_publisher_that_has_its_spec(server, prefix):
    # Given a topic that code does not declare, and a publisher that knows it
    owner, publisher = Bus(server.url, prefix=prefix), Bus(server.url, prefix=prefix)
    owner.topic("old")
    owner.publish("old", 1)
    publisher.publish("old", 2)
    # When it is deleted
    owner.registry.delete("old")
    # Then the publisher is told, and no stream comes into being
    with pytest.raises(UnknownTopic):
        publisher.publish("old", 3)
    assert publisher.client.call("EXISTS", publisher.keys.partition("old", 0).stream) == 0
    owner.close()
    publisher.close()


# ---------------------------------------------------------------------- many


@pytest.mark.both_servers
def test_ten_thousand_messages_keep_the_order_of_each_key(bus):
    # Given messages of 100 keys
    values = [{"sku": f"sku-{number % 100}", "number": number} for number in range(10_000)]
    # When they are published
    assert bus.publish_many("orders", iter(values), key=lambda value: value["sku"]) == 10_000
    # Then each key is in its partition, in order and complete
    numbers: defaultdict[bytes, list[int]] = defaultdict(list)
    for partition, entries in stored(bus).items():
        for _, fields in entries:
            assert partition_of(fields[b"k"].decode(), 8) == partition
            numbers[fields[b"k"]].append(int(fields[b"v"].split(b":")[-1].rstrip(b"}")))
    assert len(numbers) == 100
    assert all(found == sorted(found) and len(found) == 100 for found in numbers.values())


def test_receipts_come_in_the_order_of_the_values(bus):
    receipts = list(bus.publish_iter("orders", range(1700), key=str))
    entries = {
        (partition, id): fields[b"v"] for partition, rows in stored(bus).items() for id, fields in rows
    }
    assert [int(entries[receipt.partition, receipt.id]) for receipt in receipts] == list(range(1700))


def test_an_endless_iterable_is_published_as_it_comes(bus):
    receipts = bus.publish_iter("orders", itertools.count())
    assert len(list(itertools.islice(receipts, 2000))) == 2000
    receipts.close()
    # And the connection that was left in the middle of it is not used again
    assert bus.publish("orders", "next").topic == "orders"


def test_nothing_is_no_message(bus):
    assert bus.publish_many("orders", []) == 0


def test_headers_can_be_made_of_each_value(bus):
    bus.publish_many("orders", ["a", "b"], headers=lambda value: {"from": value} if value == "a" else None)
    assert sorted(tuple(fields) for rows in stored(bus).values() for _, fields in rows) == [
        (b"v",),
        (b"v", b"h"),
    ]


def test_a_message_at_fault_stops_the_rest_and_leaves_those_before_it(bus):
    values = [*range(1100), object(), *range(5)]
    receipts: list[Receipt] = []
    with pytest.raises(InvalidMessage):
        receipts.extend(bus.publish_iter("orders", values))
    assert len(receipts) == 1100
    numbers = sorted(int(fields[b"v"]) for rows in stored(bus).values() for _, fields in rows)
    assert numbers == list(range(1100))


def test_an_iterable_that_breaks_leaves_what_came_before_it(bus):
    def lines() -> Iterator[int]:
        yield from range(700)
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        bus.publish_many("orders", lines())
    assert count(bus) == 700


def test_a_spec_that_cannot_be_read_in_the_middle_doubles_nothing(bus, monkeypatch):
    # Given a Redis that cannot be asked for the spec again after the first write
    bus.registry.spec("orders")
    packer, asked = bus.publisher.packer, []

    def once(topic):
        asked.append(topic)
        if len(asked) > 1:
            raise BusUnavailable("away")
        return packer(topic)

    monkeypatch.setattr(bus.publisher, "packer", once)
    # When more than one write is published
    with pytest.raises(BusUnavailable) as caught:
        bus.publish_many("orders", range(1200))
    # Then the first is stored once, and the error says so
    numbers = sorted(int(fields[b"v"]) for rows in stored(bus).values() for _, fields in rows)
    assert numbers == list(range(500))
    assert "500 messages" in caught.value.__notes__[0]
