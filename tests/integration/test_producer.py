"""The buffered producer: what is stored, in which order, and what each future says."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.client import Bus
from bus.errors import (
    BufferFull,
    BusError,
    BusFull,
    BusUnavailable,
    ConfigurationError,
    InvalidMessage,
    ProducerClosed,
    PublishUncertain,
    ServerError,
    UnknownTopic,
)
from bus.format.partition import partition_of
from bus.publishing.producer import Producer
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from tests import loops
from tests.proxy import Proxy
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PARTITIONS = 8
#: A message that should be stored is, long before that. Seconds.
SOON = 30


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders", partitions=PARTITIONS)
    bus.registry.spec("orders")
    yield bus
    bus.close()


def stored(bus: Bus, topic: str = "orders") -> dict[int, list[bytes]]:
    """Partition → the values in it, in order."""
    streams = [bus.keys.partition(topic, n).stream for n in range(bus.registry.spec(topic).partitions)]
    return {
        number: [fields[1] for _, fields in bus.client.call("XRANGE", stream, "-", "+")]
        for number, stream in enumerate(streams)
    }


def numbers(bus: Bus) -> list[int]:
    return sorted(int(value) for values in stored(bus).values() for value in values)


# ---------------------------------------------------------------------- what is stored


@pytest.mark.both_servers
def test_every_future_has_the_receipt_of_its_message(bus: Bus) -> None:
    with Producer(bus) as producer:
        futures = [producer.send("orders", number, key=f"k{number % 50}") for number in range(5000)]
        receipts = [future.result(SOON) for future in futures]
    ids = {
        (number, id.decode()): int(fields[1])
        for number in range(PARTITIONS)
        for id, fields in bus.client.call("XRANGE", bus.keys.partition("orders", number).stream, "-", "+")
    }
    assert [ids[receipt.partition, receipt.id] for receipt in receipts] == list(range(5000))
    assert all(
        receipt.partition == partition_of(f"k{number % 50}", PARTITIONS)
        for number, receipt in enumerate(receipts)
    )
    assert all(future.done() and future.exception() is None for future in futures)


def test_the_order_of_calls_is_the_order_in_every_partition(bus: Bus) -> None:
    with Producer(bus, batch_messages=37) as producer:
        for number in range(10_000):
            producer.send("orders", number, key=f"k{number % 50}")
    assert numbers(bus) == list(range(10_000))
    assert all([int(v) for v in values] == sorted(map(int, values)) for values in stored(bus).values())


def test_many_threads_share_a_producer_and_each_keeps_its_order(bus: Bus) -> None:
    def send(thread: int) -> None:
        for number in range(2000):
            producer.send("orders", [thread, number], key=f"t{thread}")

    with Producer(bus, buffer_messages=500) as producer:
        threads = [threading.Thread(target=send, args=(each,)) for each in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seen = defaultdict(list)
    for values in stored(bus).values():
        for value in values:
            thread, number = map(int, value.strip(b"[]").split(b","))
            seen[thread].append(number)
    assert seen == {thread: list(range(2000)) for thread in range(8)}


def test_keyless_messages_stay_with_a_partition_for_a_batch_and_then_go_on(bus: Bus) -> None:
    with Producer(bus, batch_messages=10, linger=60) as producer:
        futures = [producer.send("orders", number) for number in range(80)]
    assert {len(values) for values in stored(bus).values()} == {10}
    partitions = [future.result().partition for future in futures]
    assert sorted(partitions[::10]) == list(range(PARTITIONS))
    assert all(len(set(partitions[first : first + 10])) == 1 for first in range(0, 80, 10))


def test_headers_bytes_and_message_ids_go_through_the_producer_too(bus: Bus) -> None:
    with Producer(bus) as producer:
        first = producer.send("orders", b"\x00\xff", key="A1", headers={"a": "b"}, message_id="x")
        again = producer.send("orders", b"other", key="A1", message_id="x")
        later = producer.send("orders", 1, key="A1", delay=60)
    assert not first.result().duplicate
    assert again.result().duplicate
    assert again.result().id == first.result().id
    assert later.result().id == "d1"
    assert stored(bus)[1] == [b"\x00\xff"]


def test_a_lone_message_goes_after_the_linger_and_at_once_when_somebody_waits(bus: Bus) -> None:
    with Producer(bus, linger=0.01) as producer:
        future = producer.send("orders", 1)
        wait_until(future.done, SOON, "the message that nobody waits for")
    with Producer(bus, linger=3600) as producer:
        assert producer.send("orders", 2).result(SOON)
        producer.send("orders", 3)
        producer.flush(SOON)
        assert numbers(bus) == [1, 2, 3]


def test_a_topic_handle_and_the_module_know_the_producer(bus: Bus) -> None:
    import bus as api

    assert api.Producer is Producer
    assert api.PublishFuture.__name__ == "PublishFuture"


# ---------------------------------------------------------------------- bad input


def test_bad_input_is_refused_at_send_and_the_others_stand(bus: Bus) -> None:
    with Producer(bus) as producer:
        producer.send("orders", 1)
        with pytest.raises(InvalidMessage, match=r"value\['a'\]"):
            producer.send("orders", {"a": object()})
        with pytest.raises(InvalidMessage):
            producer.send("orders", float("nan"), key="k")
        with pytest.raises(InvalidMessage, match="key"):
            producer.send("orders", 1, key=7)  # type: ignore[arg-type]
        with pytest.raises(InvalidMessage, match="header"):
            producer.send("orders", 1, headers={"a": 1})  # type: ignore[dict-item]
        with pytest.raises(InvalidMessage, match="bytes"):
            producer.send("orders", "x" * 2_000_000)
        with pytest.raises(UnknownTopic):
            producer.send("ordres", 1)
        producer.send("orders", 2)
    assert numbers(bus) == [1, 2]


def test_a_closed_producer_takes_nothing(bus: Bus) -> None:
    producer = Producer(bus)
    producer.send("orders", 1)
    producer.close()
    producer.close()
    with pytest.raises(ProducerClosed):
        producer.send("orders", 2)
    assert numbers(bus) == [1]


@pytest.mark.parametrize("options", [{"linger": -1}, {"batch_messages": 0}, {"buffer_bytes": True},
                                     {"on_full": "drop"}, {"delivery_timeout": "1"},
                                     {"linger": float("nan")}])  # fmt: skip
def test_bad_options_are_refused(bus: Bus, options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Producer(bus, **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- a full buffer


def test_a_full_buffer_raises_where_that_is_wanted(bus: Bus, own_server: EmbeddedServer, prefix: str) -> None:
    slow = Bus(own_server.url, prefix=prefix)
    slow.topic("orders")
    slow.registry.spec("orders")
    own_server.freeze()
    producer = Producer(slow, buffer_messages=10, on_full="raise", linger=0)
    futures = [producer.send("orders", number) for number in range(10)]
    with pytest.raises(BufferFull, match="10 messages"):
        producer.send("orders", 10)
    own_server.thaw()
    assert [future.result(SOON).partition for future in futures] == [0] * 10
    producer.send("orders", 10)
    producer.close()
    assert numbers(slow) == list(range(11))
    slow.close()


def test_a_full_buffer_blocks_until_there_is_room(own_server: EmbeddedServer, prefix: str) -> None:
    bus = Bus(own_server.url, prefix=prefix, timeout=20)
    bus.topic("orders")
    bus.registry.spec("orders")
    producer = Producer(bus, buffer_messages=10, linger=0)
    own_server.freeze()
    sent = []

    def send() -> None:
        for number in range(100):
            producer.send("orders", number)
            sent.append(number)

    thread = threading.Thread(target=send)
    thread.start()
    wait_until(lambda: len(sent) == 10, SOON, "the buffer to be full")
    own_server.thaw()
    thread.join(SOON)
    producer.close()
    assert numbers(bus) == list(range(100))
    bus.close()


def test_a_message_that_can_never_fit_is_refused(bus: Bus) -> None:
    with Producer(bus, buffer_bytes=1000) as producer:
        with pytest.raises(BufferFull, match="does not fit"):
            producer.send("orders", "x" * 2000)
        for number in range(100):
            producer.send("orders", number)
    assert numbers(bus) == list(range(100))


# ---------------------------------------------------------------------- bad weather


@pytest.mark.both_servers
def test_while_memory_is_full_messages_wait_and_then_go_in_their_order(bus: Bus) -> None:
    bus.publish("orders", -1, key="k")
    bus.client.call("CONFIG", "SET", "maxmemory", 1)
    try:
        producer = Producer(bus, batch_messages=50, linger=0)
        futures = [producer.send("orders", number, key=f"k{number % 5}") for number in range(1000)]
        wait_until(lambda: producer._sender is not None and producer._sender._troubles > 1, SOON, "a refusal")
        assert not any(future.done() for future in futures)
    finally:
        bus.client.call("CONFIG", "SET", "maxmemory", 0)
    producer.close()
    assert numbers(bus) == list(range(-1, 1000))
    assert all([int(v) for v in values] == sorted(map(int, values)) for values in stored(bus).values())


def test_what_memory_refuses_for_longer_than_the_delivery_timeout_fails_as_full(bus: Bus) -> None:
    bus.client.call("CONFIG", "SET", "maxmemory", 1)
    try:
        producer = Producer(bus, delivery_timeout=0.2)
        future = producer.send("orders", 1)
        assert isinstance(future.exception(SOON), BusFull)
        producer.close()
    finally:
        bus.client.call("CONFIG", "SET", "maxmemory", 0)
    assert numbers(bus) == []


@pytest.mark.both_servers
def test_a_stream_that_vanished_is_made_again_with_its_groups_and_the_order_is_kept(bus: Bus) -> None:
    bus.registry.declare_groups([GroupSpec(topic="orders", name="inventory")])
    stream = bus.keys.partition("orders", 1).stream
    bus.client.call("DEL", stream)
    with Producer(bus, batch_messages=100) as producer:
        for number in range(1000):
            producer.send("orders", number, key="A1")
    assert [int(value) for value in stored(bus)[1]] == list(range(1000))
    assert bus.client.call("XINFO", "GROUPS", stream)


def test_a_deleted_topic_fails_its_messages_and_no_others(server: EmbeddedServer, prefix: str) -> None:
    owner, bus = Bus(server.url, prefix=prefix), Bus(server.url, prefix=prefix)
    for name in ("old", "kept"):
        owner.topic(name)
        owner.publish(name, 0)
        bus.registry.spec(name)
    owner.registry.delete("old")
    producer = Producer(bus)
    gone, kept = producer.send("old", 1), producer.send("kept", 1)
    assert kept.result(SOON).topic == "kept"
    assert isinstance(gone.exception(SOON), UnknownTopic)
    producer.close()
    assert bus.client.call("EXISTS", bus.keys.partition("old", 0).stream) == 0
    owner.close()
    bus.close()


@pytest.mark.both_servers
def test_a_wrong_type_fails_the_messages_of_that_partition_and_the_others_stand(bus: Bus) -> None:
    wrong = bus.keys.partition("orders", partition_of("A1", PARTITIONS)).stream
    bus.client.call("DEL", wrong)
    bus.client.call("SET", wrong, "something else")
    producer = Producer(bus)
    futures = {key: [producer.send("orders", n, key=key) for n in range(300)] for key in ("A1", "B2", "C3")}
    assert partition_of("B2", PARTITIONS) != 1 != partition_of("C3", PARTITIONS)
    for future in futures["A1"]:
        error = future.exception(SOON)
        assert isinstance(error, ServerError)
        assert error.code == "WRONGTYPE"
    assert [future.exception(SOON) for key in ("B2", "C3") for future in futures[key]] == [None] * 600
    # And an error that nobody asked for is raised at the end
    for number in range(30):
        producer.send("orders", number, key="A1")
    with pytest.raises(ServerError) as caught:
        producer.flush(SOON)
    assert "30 messages" in caught.value.__notes__[0]
    producer.close()
    bus.client.call("DEL", wrong)


def test_messages_are_kept_while_redis_restarts(own_server: EmbeddedServer, prefix: str) -> None:
    bus = Bus(own_server.url, prefix=prefix)
    bus.topic("orders", partitions=PARTITIONS)
    bus.registry.spec("orders")
    own_server.stop()
    with Producer(bus) as producer:
        futures = [producer.send("orders", number, key=f"k{number % 7}") for number in range(3000)]
        wait_until(lambda: producer._sender is not None and producer._sender._troubles > 1, SOON, "a refusal")
        own_server.start()
        assert all(future.result(SOON) for future in futures)
    assert numbers(bus) == list(range(3000))
    bus.close()


def test_redis_that_stays_away_fails_the_messages_as_not_written(tmp_path: Path) -> None:
    nobody = Bus(f"unix://{tmp_path}/nobody.sock", timeout=1)
    nobody.topic("orders")
    producer = Producer(nobody)
    with pytest.raises(BusUnavailable):
        producer.send("orders", 1)
    producer.close()


def test_close_fails_what_could_not_be_written_in_its_time(own_server: EmbeddedServer, prefix: str) -> None:
    bus = Bus(own_server.url, prefix=prefix)
    bus.topic("orders")
    bus.registry.spec("orders")
    own_server.stop()
    producer = Producer(bus, batch_messages=10)
    futures = [producer.send("orders", number) for number in range(100)]
    with pytest.raises((TimeoutError, BusUnavailable)):
        producer.close(0.2)
    for future in futures:
        error = future.exception(0)
        assert isinstance(error, BusUnavailable)
        assert not isinstance(error, PublishUncertain)
    own_server.start()
    assert numbers(bus) == []
    bus.close()


# ---------------------------------------------------------------------- lost replies


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[Proxy]:
    with Proxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: Proxy, bus: Bus) -> Iterator[Bus]:
    proxied = Bus(proxy.url, prefix=bus.settings.prefix, timeout=20)
    proxied.topic("orders", partitions=PARTITIONS)
    proxied.registry.spec("orders")
    yield proxied
    proxied.close()


@pytest.mark.parametrize("loses", ["requests", "replies"])
def test_a_lost_reply_is_uncertain_and_nothing_is_stored_twice(
    bus: Bus, proxy: Proxy, proxied: Bus, loses: str
) -> None:
    producer = Producer(proxied, batch_messages=100)
    futures = [producer.send("orders", number, key="k") for number in range(1000)]
    producer.flush(SOON)
    proxy.loses = loses
    futures += [producer.send("orders", number, key="k") for number in range(1000, 1100)]
    errors = [future.exception(SOON) for future in futures[1000:]]
    assert all(isinstance(error, PublishUncertain) for error in errors)
    proxy.loses = "nothing"
    futures += [producer.send("orders", number, key="k") for number in range(1100, 1200)]
    producer.close()
    kept = set(range(1000)) | set(range(1100, 1200))
    there = numbers(bus)
    assert len(there) == len(set(there))
    assert kept <= set(there)
    assert set(there) - kept == (set(range(1000, 1100)) if loses == "replies" else set())


def test_two_hundred_lost_replies_double_nothing_that_has_a_message_id(
    bus: Bus, proxy: Proxy, proxied: Bus
) -> None:
    # Given a network that breaks 200 times while messages with ids are sent
    with Producer(proxied, batch_messages=25, linger=0) as producer:
        futures = []
        number = 0
        while proxy.dropped < 200:
            proxy.loses = "replies"
            dropped = proxy.dropped
            for _ in range(50):
                futures.append(
                    producer.send("orders", number, key=f"k{number % 5}", message_id=f"id-{number}")
                )
                number += 1
            wait_until(lambda before=dropped: proxy.dropped > before, SOON, "a lost reply", 0.001)  # type: ignore[misc]
            proxy.loses = "nothing"
            # Then each has a receipt
            assert all(future.result(SOON) for future in futures)
            futures.clear()
    # And the streams are the ledger, in order
    assert numbers(bus) == list(range(number))
    assert all([int(v) for v in values] == sorted(map(int, values)) for values in stored(bus).values())


def test_receipts_stay_with_their_messages_when_ids_come_in_between(bus: Bus) -> None:
    with Producer(bus, batch_messages=7, linger=0) as producer:
        futures = [
            producer.send("orders", n, key=f"k{n % 9}", message_id=f"id-{n}" if n % 5 == 0 else None)
            for n in range(3000)
        ]
        places = [(future.result(SOON).partition, future.result().id) for future in futures]
    entries = {
        (number, id.decode()): int(fields[1])
        for number in range(PARTITIONS)
        for id, fields in bus.client.call("XRANGE", bus.keys.partition("orders", number).stream, "-", "+")
    }
    assert [entries[place] for place in places] == list(range(3000))


def test_what_may_be_stored_is_uncertain_however_it_ends(server: EmbeddedServer, prefix: str) -> None:
    # Given a message with an id whose reply was lost, and a Redis from which no reply comes any more
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders")
    bus.registry.spec("orders")
    with Proxy(server.url) as proxy:
        proxied = Bus(proxy.url, prefix=prefix, timeout=1)
        proxied.topic("orders")
        proxied.registry.spec("orders")
        producer = Producer(proxied, delivery_timeout=0.5)
        assert producer.send("orders", 1, message_id="a").result(SOON)
        proxy.loses = "replies"
        future = producer.send("orders", 2, message_id="b")
        wait_until(lambda: proxy.dropped > 0, SOON, "the reply to be lost", 0.001)
        # Then nobody says that it was not written
        assert isinstance(future.exception(SOON), PublishUncertain)
        producer.close()
        proxied.close()
    assert 2 in [int(value) for value in stored(bus)[0]]
    bus.close()


def test_a_producer_whose_thread_breaks_leaves_nobody_waiting(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> tuple[bytes, int]:
        raise MemoryError("no room")

    producer = Producer(bus, batch_messages=10)
    producer.send("orders", 0).result(SOON)
    monkeypatch.setattr("bus.publishing.sender.Flight.write", broken)
    futures = [producer.send("orders", number) for number in range(10)]
    assert all(isinstance(future.exception(SOON), BusError) for future in futures)
    with pytest.raises(ProducerClosed):
        producer.send("orders", 99)
    producer.close()
    assert "broke" in caplog.text


def test_a_callback_that_waits_is_told_that_it_must_not(bus: Bus) -> None:
    told: list[Exception] = []
    with Producer(bus, linger=0) as producer:

        def wait(_: object) -> None:
            try:
                producer.send("orders", 2).result(SOON)
            except BusError as error:
                told.append(error)

        producer.send("orders", 1).add_done_callback(wait)
        producer.flush(SOON)
    assert "callback" in str(told[0])
    assert numbers(bus) == [1, 2]


# ---------------------------------------------------------------------- forks, exits, event loops


def test_after_a_fork_the_child_has_a_producer_of_its_own(bus: Bus) -> None:
    producer = Producer(bus, linger=3600)
    before = producer.send("orders", 1)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            producer.send("orders", 2)
            producer.flush(SOON)
            try:
                before.result(1)
            except BusError as error:
                code = 0 if "forked" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert before.result(SOON)
    producer.close()
    assert numbers(bus) == [1, 2]


def test_what_is_buffered_is_written_at_the_end_of_the_process(server: EmbeddedServer, bus: Bus) -> None:
    program = (
        "import bus\np = bus.Producer(linger=3600)\nfor number in range(100): p.send('orders', number)\n"
    )
    environment = {**os.environ, "BUS_URL": server.url, "BUS_PREFIX": bus.settings.prefix}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True, timeout=60)
    assert numbers(bus) == list(range(100))


def test_a_future_can_be_awaited(bus: Bus) -> None:
    async def send() -> list[int]:
        with Producer(bus, linger=3600) as producer:
            receipts = await asyncio.gather(*(_awaited(producer, number) for number in range(100)))
        return [receipt.partition for receipt in receipts]

    async def _awaited(producer: Producer, number: int):  # type: ignore[no-untyped-def]
        return await producer.send("orders", number, key="A1")

    assert loops.run(send()) == [1] * 100
    assert numbers(bus) == list(range(100))


def test_a_callback_that_raises_stops_nothing(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    seen = []
    with Producer(bus) as producer:
        producer.send("orders", 1).add_done_callback(lambda _: 1 / 0)
        producer.send("orders", 2).add_done_callback(lambda future: seen.append(future.result().topic))
        producer.flush(SOON)
        producer.send("orders", 3)
    assert seen == ["orders"]
    assert "callback" in caplog.text
    assert numbers(bus) == [1, 2, 3]
