"""Bad weather: whatever is wrong with the server, each way of publishing says it by type, and in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus.client import Bus
from bus.errors import BusError, BusFull, BusUnavailable, PublishUncertain, ServerError
from bus.publishing.producer import Producer
from bus.streams.connect import Client, Endpoint
from bus.streams.embedded import EmbeddedServer
from tests import loops
from tests.waiting import wait_until

#: Seconds that one call to Redis may take; and a message of a producer.
TIMEOUT = 1.0
#: However slow the machine is, nothing takes as long as this.
FOREVER = 60.0


def publish(bus: Bus) -> None:
    bus.publish("orders", 1)


def publish_once(bus: Bus) -> None:
    bus.publish("orders", 1, message_id="x")


def publish_later(bus: Bus) -> None:
    bus.publish("orders", 1, delay=3600)


def publish_many(bus: Bus) -> None:
    bus.publish_many("orders", [1, 2, 3])


def producer(bus: Bus) -> None:
    with Producer(bus, delivery_timeout=0.5) as producer:
        producer.send("orders", 1)


def apublish(bus: Bus) -> None:
    async def run() -> None:
        bus.async_publisher._producer._delivery_timeout = 0.5
        await bus.apublish("orders", 1)

    loops.run(run())


WAYS = [publish, publish_once, publish_later, publish_many, producer, apublish]
Way = Callable[[Bus], None]


@pytest.fixture(params=WAYS, ids=[way.__name__ for way in WAYS])
def way(request: pytest.FixtureRequest) -> Way:
    chosen: Way = request.param
    return chosen


def refusal(bus: Bus, way: Way) -> BusError:
    """The error that this way of publishing gives, in time."""
    began = time.monotonic()
    try:
        with pytest.raises(BusError) as caught:
            way(bus)
    finally:
        bus.close()
    assert time.monotonic() - began < FOREVER
    return caught.value


def surely_not_written(error: BusError) -> bool:
    return isinstance(error, BusUnavailable) and not isinstance(error, PublishUncertain)


def topic(url: str, prefix: str) -> Bus:
    bus = Bus(url, prefix=prefix, timeout=TIMEOUT)
    bus.topic("orders")
    return bus


def lengths(bus: Bus) -> int:
    keys = bus.keys.partition("orders", 0)
    return int(bus.client.call("XLEN", keys.stream)) + int(bus.client.call("ZCARD", keys.delayed))


@pytest.fixture
def tcp(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server with a port."""
    with EmbeddedServer(tmp_path / "server", port=0) as server:
        yield server


def address(server: EmbeddedServer) -> str:
    return server.url.removeprefix("redis://").removesuffix("/0")


@pytest.mark.both_servers
def test_a_read_only_replica_refuses(own_server: EmbeddedServer, prefix: str, way: Way) -> None:
    bus = topic(own_server.url, prefix)
    bus.publish("orders", 0)
    bus.client.call("REPLICAOF", "127.0.0.1", "1")
    error = refusal(bus, way)
    assert surely_not_written(error)
    assert "READONLY" in str(error)
    bus.client.call("REPLICAOF", "NO", "ONE")
    assert lengths(bus) == 1
    bus.close()


@pytest.mark.parametrize("login", ["", ":wrong@"])
def test_a_wrong_password_is_told_and_not_shown(
    tcp: EmbeddedServer, prefix: str, way: Way, login: str
) -> None:
    client = Client(Endpoint(tcp.url))
    client.call("CONFIG", "SET", "requirepass", "the right one")
    error = refusal(topic(f"redis://{login}{address(tcp)}/0", prefix), way)
    assert surely_not_written(error)
    assert "wrong@" not in str(error)
    assert "the right one" not in str(error)
    client.close()


def test_tls_that_fails_is_told(tcp: EmbeddedServer, prefix: str, way: Way) -> None:
    error = refusal(topic(f"rediss://{address(tcp)}/0", prefix), way)
    assert surely_not_written(error)
    assert "SSL" in str(error) or "Cannot connect" in str(error)


def test_a_host_that_nobody_knows_is_told(prefix: str, way: Way) -> None:
    error = refusal(topic("redis://no-such-host.invalid:6379/0", prefix), way)
    assert surely_not_written(error)
    assert "no-such-host.invalid" in str(error) or "Cannot connect" in str(error)


def test_a_port_where_nobody_listens_is_told(tcp: EmbeddedServer, prefix: str, way: Way) -> None:
    url = tcp.url
    tcp.stop()
    assert surely_not_written(refusal(topic(url, prefix), way))


@pytest.mark.both_servers
def test_a_server_that_is_loading_is_told(own_server: EmbeddedServer, prefix: str) -> None:
    # Given a server that takes long to read its data back
    bus = topic(own_server.url, prefix)
    bus.publish("orders", 0)
    bus.client.pipe([("SET", f"{prefix}:filler:{number}", "x" * 1000) for number in range(900)])
    bus.client.call("BGREWRITEAOF")
    wait_until(lambda: rewritten(bus), 30, "the file to be rewritten")
    own_server.stop()
    own_server._config |= {"key-load-delay": "20000", "loading-process-events-interval-bytes": "1024"}
    starting = threading.Thread(target=own_server.start)
    starting.start()
    wait_until(lambda: is_loading(own_server.url), 30, "the server to be loading", 0.01)
    # When something is published meanwhile, then it is not written, and that is said
    for way in WAYS:
        assert surely_not_written(refusal(bus, way)), way.__name__
    # And when it has loaded, it is as before
    client = Client(Endpoint(own_server.url))
    client.call("CONFIG", "SET", "key-load-delay", 0)
    client.close()
    starting.join(FOREVER)
    assert lengths(bus) == 1
    bus.close()


def rewritten(bus: Bus) -> bool:
    info = bus.client.call("INFO", "persistence")
    return b"aof_rewrite_in_progress:0" in info and b"aof_last_bgrewrite_status:ok" in info


def is_loading(url: str) -> bool:
    client = Client(Endpoint(url, timeout=5))
    try:
        client.call("PING")
    except BusUnavailable as error:
        return "LOADING" in str(error)
    finally:
        client.close()
    return False


@pytest.mark.both_servers
def test_a_full_memory_is_told_by_its_own_type(server: EmbeddedServer, prefix: str, way: Way) -> None:
    bus = topic(server.url, prefix)
    bus.publish("orders", 0)
    bus.client.call("CONFIG", "SET", "maxmemory", 1)
    try:
        error = refusal(bus, way)
    finally:
        bus.client.call("CONFIG", "SET", "maxmemory", 0)
    assert isinstance(error, BusFull)
    assert lengths(bus) == 1
    bus.close()


@pytest.mark.both_servers
def test_a_key_of_another_type_is_told_by_the_servers_word(
    server: EmbeddedServer, prefix: str, way: Way
) -> None:
    bus = topic(server.url, prefix)
    bus.registry.spec("orders")
    stream = bus.keys.partition("orders", 0).stream
    bus.client.call("DEL", stream)
    bus.client.call("SET", stream, "something else")
    error = refusal(bus, way)
    assert isinstance(error, ServerError)
    assert error.code == "WRONGTYPE"
    assert bus.client.call("GET", stream) == b"something else"
    bus.close()


def test_a_server_that_hangs_is_uncertain_where_something_was_sent(
    own_server: EmbeddedServer, prefix: str, way: Way
) -> None:
    # Given a server that is frozen after the topic is known
    bus = topic(own_server.url, prefix)
    bus.publish("orders", 0)
    bus.async_publisher  # noqa: B018  made now
    own_server.freeze()
    # When something is published
    error = refusal(bus, way)
    # Then nobody can know what became of it
    assert isinstance(error, PublishUncertain | BusUnavailable)
    own_server.thaw()
    # And once the server is back it is there at most once
    wait_until(lambda: bool(bus.client.call("PING")), 30, "the server")
    assert lengths(bus) <= (4 if way is publish_many else 2)
    bus.close()
