"""What comes out is what went in, byte for byte, by every way of publishing and on both servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.client import Bus
from bus.errors import InvalidMessage
from bus.format import codec
from bus.publishing.producer import Producer
from bus.streams.embedded import EmbeddedServer
from bus.values import Receipt
from tests import loops

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip
messages = st.tuples(
    json_values | st.binary(max_size=200), st.none() | text, st.dictionaries(text, text, max_size=3)
)


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders", partitions=2)
    bus.registry.spec("orders")
    yield bus
    bus.close()


def one(bus: Bus, value: Any, key: str | None, headers: dict[str, str]) -> Receipt:
    return bus.publish("orders", value, key=key, headers=headers or None)


def once(bus: Bus, value: Any, key: str | None, headers: dict[str, str]) -> Receipt:
    number = bus.client.call("INCR", f"{bus.settings.prefix}:number")
    return bus.publish("orders", value, key=key, headers=headers, message_id=f"id-{number}")


def many(bus: Bus, value: Any, key: str | None, headers: dict[str, str]) -> Receipt:
    return next(bus.publish_iter("orders", [value], key=lambda _: key, headers=lambda _: headers))


def buffered(bus: Bus, value: Any, key: str | None, headers: dict[str, str]) -> Receipt:
    with Producer(bus) as producer:
        return producer.send("orders", value, key=key, headers=headers or None).result(30)


def awaited(bus: Bus, value: Any, key: str | None, headers: dict[str, str]) -> Receipt:
    return loops.run(bus.apublish("orders", value, key=key, headers=headers or None))


def read(bus: Bus, receipt: Receipt) -> tuple[Any, str | None, dict[str, str]]:
    stream = bus.keys.partition("orders", receipt.partition).stream
    [(_, fields)] = bus.client.call("XRANGE", stream, receipt.id, receipt.id)
    value, key, headers = codec.decode(fields)
    return value, key, dict(headers)


@pytest.mark.both_servers
@pytest.mark.parametrize("way", [one, once, many, buffered, awaited])
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(message=messages)
def test_values_keys_and_headers_come_out_as_they_went_in(
    bus: Bus, way: Callable[..., Receipt], message: tuple[Any, str | None, dict[str, str]]
) -> None:
    value, key, headers = message
    came, came_key, came_headers = read(bus, way(bus, value, key, headers))
    assert (came, type(came), came_key, came_headers) == (value, type(value), key, headers)


@pytest.mark.parametrize("way", [one, once, many, buffered, awaited])
def test_what_is_at_the_edge_has_a_stated_behaviour(bus: Bus, way: Callable[..., Receipt]) -> None:
    # Empty things are messages
    for value in ("", b"", [], {}, None, 0):
        assert read(bus, way(bus, value, "", {}))[0] == value
    # So is all that fits, to the byte
    largest = b"x" * bus.settings.max_message_bytes
    assert read(bus, way(bus, largest, None, {}))[0] == largest
    # One byte more, and what JSON cannot hold, is refused, and says where
    refused = {
        "at most 1,048,576": largest + b"x",
        r"value\['a'\] is nan": {"a": float("nan")},
        r"value\[1\] is inf": [0, float("inf")],
        r"value\[0\]": [2**64],
        "valid": "\ud800",
    }
    for words, value in refused.items():
        with pytest.raises(InvalidMessage, match=words):
            way(bus, value, None, {})
    # Tuples come back as lists, and the keys of a dictionary must be texts
    assert read(bus, way(bus, (1, 2), None, {}))[0] == [1, 2]
    with pytest.raises(InvalidMessage, match="key 1"):
        way(bus, {1: 2}, None, {})
