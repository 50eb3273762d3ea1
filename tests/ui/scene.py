"""What the browser tests put on the bus, and how they stand in for a worker."""

from __future__ import annotations

import time
from collections.abc import Iterable

import orjson

from bus.client import Bus
from bus.topics.registry import GroupSpec
from bus.values import Ordering, TopicSpec


def declare(
    bus: Bus, topic: str, partitions: int = 1, groups: Iterable[str] = (), ordering: Ordering = "key"
) -> None:
    """A topic with its groups."""
    bus.registry.project([TopicSpec(name=topic, partitions=partitions)])
    bus.registry.declare_groups(GroupSpec(topic=topic, name=name, ordering=ordering) for name in groups)


def declare_many(bus: Bus, count: int, group: str) -> None:
    """Topics `topic-000` and so on, of one partition, one message and one group each; few round trips."""
    names = [f"topic-{number:03d}" for number in range(count)]
    spec = orjson.dumps({"partitions": 1, "retention": None})
    record = orjson.dumps({"ordering": "key", "start": "earliest", "paused": False})
    streams = [bus.keys.partition(name, 0).stream for name in names]
    commands: list[list[str | bytes]] = [["HSET", bus.keys.topics, name, spec] for name in names]
    commands += [["HSET", bus.keys.groups, f"{name}/{group}", record] for name in names]
    commands += [
        ["XGROUP", "CREATE", stream, group, "0", "MKSTREAM", "ENTRIESREAD", "0"] for stream in streams
    ]
    commands += [["XADD", stream, "*", "v", b'{"n":1}'] for stream in streams]
    for at in range(0, len(commands), 500):
        bus.client.pipe(commands[at : at + 500])


def publish(bus: Bus, topic: str, count: int) -> None:
    """Orders with keys that spread over the partitions."""
    bus.publish_many(topic, ({"sku": f"A{n % 97}", "qty": n} for n in range(count)), key=lambda v: v["sku"])


def drain(bus: Bus, topic: str, group: str, limit: int | None = None) -> int:
    """Take and settle messages as a worker would; return how many."""
    done = 0
    for partition in range(bus.registry.spec(topic).partitions):
        stream = bus.keys.partition(topic, partition).stream
        while ids := take(bus, stream, group, 100 if limit is None else min(100, limit - done)):
            bus.client.call("XACK", stream, group, *ids)
            done += len(ids)
    return done


def take(bus: Bus, stream: str, group: str, count: int) -> list[bytes]:
    """Take messages without settling them; return their ids."""
    if count <= 0:
        return []
    found = bus.client.call("XREADGROUP", "GROUP", group, "0", "COUNT", count, "STREAMS", stream, ">")
    return [entry[0] for entry in found[0][1]] if found else []


def enrol(bus: Bus, incarnation: str, groups: list[str] | None = None, beat: int = 1) -> None:
    """A row in the table of workers."""
    row = {
        "host": "worker-1",
        "pid": 4711,
        "started": int(time.time() * 1000) - 3_600_000,
        "beat": beat,
        "groups": groups,
        "processes": 2,
    }
    bus.client.call("HSET", bus.keys.workers, incarnation, orjson.dumps(row))


def own(bus: Bus, topic: str, group: str, incarnation: str, partitions: Iterable[int]) -> None:
    """Give a worker the lanes of some partitions."""
    for partition in partitions:
        lease = bus.keys.partition(topic, partition).lease(group, "0")
        bus.client.call("SET", lease, f"{incarnation}:token-{partition}")
