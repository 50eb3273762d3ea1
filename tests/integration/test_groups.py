"""Consumer groups: create, pause, resume, delete."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bus import observe
from bus.client import Bus
from bus.errors import ConfigurationError, UnknownGroup, UnknownTopic
from bus.operating import groups
from bus.streams.embedded import EmbeddedServer


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    """A bus with the topic "orders" of two partitions and four messages."""
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders", partitions=2)
    bus.publish_many("orders", range(4))
    yield bus
    bus.close()


def lag(bus: Bus, group: str) -> int | None:
    snapshot, _ = observe.group(bus, "orders", group)
    return None if snapshot.lag is None else snapshot.lag.count


@pytest.mark.both_servers
def test_a_group_begins_where_it_is_told_and_knows_its_lag(bus: Bus) -> None:
    groups.create(bus, "orders", "all", start="earliest")
    groups.create(bus, "orders", "new", start="latest", ordering="none")

    assert (lag(bus, "all"), lag(bus, "new")) == (4, 0)
    assert [(spec.name, spec.ordering) for spec in bus.registry.groups("orders")] == [
        ("all", "key"),
        ("new", "none"),
    ]


def test_what_cannot_be_a_group_is_refused_and_leaves_nothing(bus: Bus) -> None:
    with pytest.raises(ConfigurationError, match="not a valid name"):
        groups.create(bus, "orders", "two words")
    with pytest.raises(ConfigurationError, match="not a position"):
        groups.create(bus, "orders", "g", start="yesterday-ish")
    with pytest.raises(ConfigurationError, match="ordering"):
        groups.create(bus, "orders", "g", ordering="random")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(UnknownTopic):
        groups.create(bus, "nope", "g")

    assert bus.registry.groups() == []


def test_a_group_is_not_created_twice(bus: Bus) -> None:
    groups.create(bus, "orders", "ledger")

    with pytest.raises(ConfigurationError, match="already"):
        groups.create(bus, "orders", "ledger", start="latest")


def test_pause_and_resume_are_declared_and_wake_the_watchers(bus: Bus) -> None:
    groups.create(bus, "orders", "ledger", ordering="partition", start="latest")

    groups.pause(bus, "orders", "ledger")
    paused = bus.registry.groups("orders")[0]
    groups.resume(bus, "orders", "ledger")
    resumed = bus.registry.groups("orders")[0]

    assert (paused.paused, resumed.paused) == (True, False)
    assert (resumed.ordering, resumed.start) == ("partition", "latest")
    hints = [fields[1] for _, fields in bus.client.call("XRANGE", bus.keys.control, "-", "+")]
    assert hints[-2:] == [b"pause", b"resume"]


@pytest.mark.parametrize("verb", [groups.pause, groups.resume, groups.delete])
def test_a_verb_on_a_group_that_is_not_there_says_so(bus: Bus, verb) -> None:
    with pytest.raises(UnknownGroup):
        verb(bus, "orders", "nobody")
    with pytest.raises(UnknownTopic):
        verb(bus, "nope", "nobody")


@pytest.mark.both_servers
def test_a_deleted_group_leaves_no_key_no_lease_and_no_declaration(bus: Bus) -> None:
    # given two groups with leases, state and dead letters, one with lanes of slots
    groups.create(bus, "orders", "ledger")
    groups.create(bus, "orders", "led")
    for group in ("ledger", "led"):
        for partition in range(2):
            keys = bus.keys.partition("orders", partition)
            bus.client.call("SET", keys.lease(group, "0"), "worker:1")
            bus.client.call("SET", keys.lease(group, "host-1-slot-3"), "worker:2")
            bus.client.call("HSET", keys.state(group), "suspect", "1-0")
            bus.client.call("XADD", keys.dead(group), "*", "v", "1")

    # when
    groups.delete(bus, "orders", "ledger")

    # then only the other group is left, and so are the messages
    left = bus.client.call("KEYS", f"{bus.keys.prefix}:*")
    assert [key for key in left if b":ledger" in key] == []
    assert len([key for key in left if b":led" in key]) == 8
    assert [spec.name for spec in bus.registry.groups("orders")] == ["led"]
    assert observe.topic(bus, "orders").messages == 4
    with pytest.raises(UnknownGroup):
        observe.group(bus, "orders", "ledger")


def test_a_group_is_deleted_although_a_stream_has_vanished(bus: Bus) -> None:
    groups.create(bus, "orders", "ledger")
    bus.client.call("DEL", bus.keys.partition("orders", 0).stream)

    groups.delete(bus, "orders", "ledger")

    assert bus.registry.groups() == []


def test_a_group_made_by_hand_can_be_deleted(bus: Bus) -> None:
    stream = bus.keys.partition("orders", 1).stream
    bus.client.call("XGROUP", "CREATE", stream, "byhand", "0")

    groups.delete(bus, "orders", "byhand")

    assert bus.client.call("XINFO", "GROUPS", stream) == []
