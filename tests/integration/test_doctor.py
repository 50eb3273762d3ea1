"""The doctor on real servers: sound, damaged, forbidding, away."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import doctor
from bus.client import Bus
from bus.doctor import Finding
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import LAYOUT, GroupSpec
from bus.values import TopicSpec

GROUPS = ("inventory", "revenue")


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    """A bus with one topic of four partitions and two groups."""
    bus = Bus(server.url, prefix=prefix)
    bus.registry.project([TopicSpec(name="orders", partitions=4)])
    bus.registry.declare_groups(GroupSpec(topic="orders", name=name) for name in GROUPS)
    yield bus
    bus.close()


def stream(bus: Bus, partition: int) -> str:
    return bus.keys.partition("orders", partition).stream


def of(check: str, findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def troubles(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.level, finding.check) for finding in findings if finding.level != "ok"]


@pytest.mark.both_servers
def test_a_sound_server_has_no_trouble(bus: Bus, request: pytest.FixtureRequest) -> None:
    findings = doctor.examine(bus)
    # Redis 7.0 forgets how far groups have read, which is the one thing to say about it.
    expected = [("warning", "version")] if "redis7" in request.node.name else []
    assert troubles(findings) == expected
    assert findings[0] == Finding("ok", "reachable", f"{bus.endpoint.safe_url} answers.")
    assert of("partitions", findings)[0].text == "4 partitions of 1 topics are there, with their groups."


@pytest.mark.both_servers
def test_damaged_partitions_are_named(bus: Bus) -> None:
    # given a partition that is gone, one overwritten, one that will expire, and one without a group
    bus.client.call("DEL", stream(bus, 0))
    bus.client.call("SET", stream(bus, 1), "foreign")
    bus.client.call("EXPIRE", stream(bus, 2), 1000)
    bus.client.call("XGROUP", "DESTROY", stream(bus, 3), "revenue")
    # then each is found, and nothing else
    findings = of("partitions", doctor.examine(bus))
    assert [finding.level for finding in findings] == ["error"] * 4
    texts = " ".join(finding.text for finding in findings)
    assert "not there: orders/0." in texts
    assert "something else: orders/1." in texts
    assert "not there: revenue in orders/3." in texts
    assert "expire: orders/2." in texts
    # and looking mended nothing
    assert bus.client.call("EXISTS", stream(bus, 0)) == 0


def test_many_damaged_partitions_are_counted_not_listed(bus: Bus) -> None:
    bus.registry.project([TopicSpec(name="many", partitions=100)])
    bus.client.call("DEL", *(bus.keys.partition("many", number).stream for number in range(100)))
    (finding,) = of("partitions", doctor.examine(bus))
    assert finding.text.endswith("many/0, many/1, many/2, many/3, many/4 and 95 more.")


@pytest.mark.both_servers
def test_messages_removed_by_a_foreign_hand_are_found_but_trimming_is_fine(bus: Bus) -> None:
    bus.client.pipe([("XADD", stream(bus, 0), f"{number}-1", "v", number) for number in range(1, 11)])
    bus.client.call("XTRIM", stream(bus, 0), "MAXLEN", 7)
    assert of("partitions", doctor.examine(bus))[0].level == "ok"
    bus.client.call("XDEL", stream(bus, 0), "6-1")
    (finding,) = of("partitions", doctor.examine(bus))
    assert (finding.level, "orders/0" in finding.text) == ("warning", True)
    # once the gap itself is trimmed, offsets are right again
    bus.client.call("XTRIM", stream(bus, 0), "MAXLEN", 3)
    assert of("partitions", doctor.examine(bus))[0].level == "ok"


def test_settings_that_lose_messages_are_found(own_server: EmbeddedServer) -> None:
    # given a server that evicts, is full, and keeps nothing
    bus = Bus(own_server.url)
    for name, value in {"maxmemory-policy": "allkeys-lru", "appendonly": "no", "maxmemory": "1mb"}.items():
        bus.client.call("CONFIG", "SET", name, value)
    # then all three are found
    found = troubles(doctor.examine(bus))
    assert ("error", "eviction") in found
    assert ("warning", "persistence") in found
    assert ("error", "memory") in found
    bus.close()


@pytest.mark.both_servers
def test_where_config_is_forbidden_the_rest_is_still_examined(bus: Bus, prefix: str) -> None:
    # given a user who may not use CONFIG, as on managed servers
    bus.client.call("ACL", "SETUSER", prefix, "on", ">made-up", "~*", "+@all", "-config")
    barred = Bus(bus.settings.url.replace("unix://", f"unix://{prefix}:made-up@"), prefix=prefix)
    try:
        # when it examines the server
        findings = doctor.examine(barred)
    finally:
        barred.close()
        bus.client.call("ACL", "DELUSER", prefix)
    # then what only CONFIG tells is unknown, and the rest is found
    (persistence,) = of("persistence", findings)
    assert (persistence.level, "unknown" in persistence.text) == ("warning", True)
    assert of("eviction", findings)[0].level == "ok"
    assert of("partitions", findings)[0].level == "ok"
    assert "made-up" not in str(findings)


@pytest.mark.both_servers
def test_keys_of_a_newer_layout_are_an_error_and_not_read(bus: Bus) -> None:
    bus.client.call("HSET", bus.keys.meta, "layout", LAYOUT + 1)
    findings = doctor.examine(bus)
    assert of("layout", findings)[0].level == "error"
    assert of("partitions", findings) == []


def test_a_replica_is_an_error(own_server: EmbeddedServer, server: EmbeddedServer) -> None:
    # given a server that was told to follow another one, which is not there
    bus = Bus(own_server.url)
    bus.client.call("REPLICAOF", "127.0.0.1", "1")
    # then it is no master
    assert ("error", "role") in troubles(doctor.examine(bus))
    bus.close()


def test_a_cluster_is_an_error(tmp_path: Path) -> None:
    # given a cluster node, which needs a TCP port and another one for its peers
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        config = {"cluster-enabled": "yes", "cluster-port": str(probe.getsockname()[1])}
    with EmbeddedServer(tmp_path / "server", config=config, port=0) as node:
        bus = Bus(node.url)
        findings = doctor.examine(bus)
        bus.close()
    assert of("reachable", findings)[0].level == "ok"
    assert ("error", "cluster") in troubles(findings)


def test_a_server_that_is_away_is_the_one_finding(tmp_path: Path) -> None:
    bus = Bus(f"unix://user:secret@{tmp_path}/nobody.sock")
    (finding,) = doctor.examine(bus)
    assert (finding.level, finding.check) == ("error", "reachable")
    assert finding.hint
    assert "secret" not in finding.text
