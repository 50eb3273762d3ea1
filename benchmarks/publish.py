"""Publishing, against redis-py doing the same: one by one, and many.

    python -m benchmarks.publish [--messages N] [--rounds R]
    python -m benchmarks.publish --memory 5000000

Both sides store the same two fields: a 200-byte order as JSON (orjson) and its key, in one of 8 streams
by the CRC-32 of the key. Server and publisher are pinned to the same two processors for both. Each contestant
runs in a process of its own, in turn; the clock runs from its first message to its last reply.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import contest
from benchmarks.consume import PARTITIONS, ROOT, order
from bus.client import Bus
from bus.format.partition import checksum
from bus.streams.embedded import EmbeddedServer

#: Messages of a redis-py pipeline.
PIPELINE = 500


class Side:
    """One contestant's topic and its orders, made beforehand so that only publishing is timed."""

    def __init__(self, url: str, messages: int) -> None:
        self.url = url
        self.bus = Bus(url, prefix=f"b{uuid.uuid4().hex[:8]}")
        self.bus.topic("bench", partitions=PARTITIONS)
        self.bus.publish("bench", order(0), key="warm")
        self.streams = [self.bus.keys.partition("bench", number).stream for number in range(PARTITIONS)]
        self.messages = messages

    def orders(self) -> Iterator[dict[str, Any]]:
        made = [order(number) for number in range(10_000)]
        for number in range(self.messages):
            yield made[number % 10_000]

    def check(self) -> None:
        """Every message is there."""
        lengths = self.bus.client.pipe([("XLEN", stream) for stream in self.streams])
        assert sum(lengths) == self.messages + 1, lengths


def redis_one_by_one(side: Side) -> None:
    import orjson
    import redis

    client, streams = redis.Redis.from_url(side.url), side.streams
    for value in side.orders():
        key = value["sku"]
        stream = streams[checksum(key.encode()) % PARTITIONS]
        client.xadd(stream, {"v": orjson.dumps(value), "k": key})


def redis_pipeline(side: Side) -> None:
    import orjson
    import redis

    pipe, streams = redis.Redis.from_url(side.url).pipeline(transaction=False), side.streams
    for number, value in enumerate(side.orders(), 1):
        key = value["sku"]
        stream = streams[checksum(key.encode()) % PARTITIONS]
        pipe.xadd(stream, {"v": orjson.dumps(value), "k": key})
        if number % PIPELINE == 0:
            pipe.execute()
    pipe.execute()


def publish(side: Side) -> None:
    for value in side.orders():
        side.bus.publish("bench", value, key=value["sku"])


def publish_many(side: Side) -> None:
    side.bus.publish_many("bench", side.orders(), key=lambda value: value["sku"])


def producer(side: Side) -> None:
    from bus.publishing.producer import Producer

    with Producer(side.bus) as producer:
        for value in side.orders():
            producer.send("bench", value, key=value["sku"])


def memory(side: Side) -> None:
    """What stays behind of messages from an endless iterable: half by publish_many, half by a Producer."""
    from bus.publishing.producer import Producer

    orders, half = (order(number) for number in itertools.count()), side.messages // 2
    before = resident()
    side.bus.publish_many("bench", itertools.islice(orders, half), key=lambda value: str(value["sku"]))
    middle = resident()
    with Producer(side.bus) as producer:
        for value in itertools.islice(orders, side.messages - half):
            producer.send("bench", value, key=str(value["sku"]))
    print(f"{half:,} messages by publish_many: resident memory grew by {(middle - before) / 1e6:.1f} MB; "
          f"{side.messages - half:,} by a Producer: by {(resident() - middle) / 1e6:.1f} MB",
          file=sys.stderr)  # fmt: skip


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


ONE_BY_ONE: dict[str, Callable[[Side], None]] = {"redis-py xadd": redis_one_by_one, "publish": publish}
MANY: dict[str, Callable[[Side], None]] = {
    f"redis-py pipeline of {PIPELINE}": redis_pipeline,
    "publish_many": publish_many,
    "Producer": producer,
}


def contestant(name: str, url: str, messages: int) -> None:
    """In a process of its own, on the second processor."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    side = Side(url, messages)
    began = time.perf_counter()
    {**ONE_BY_ONE, **MANY, "memory": memory}[name](side)
    seconds = time.perf_counter() - began
    side.check()
    print(json.dumps(messages / seconds))


def run(name: str, server: EmbeddedServer, messages: int) -> float:
    command = [sys.executable, "-m", "benchmarks.publish", "--contestant", name, "--url", server.url,
               "--messages", str(messages)]  # fmt: skip
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    Bus(server.url).client.call("FLUSHALL")
    return float(answer.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=300_000, help="of those that send many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--memory", type=int, metavar="N", help="publish N messages and tell what memory grew"
    )
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        contestant(options.contestant, options.url, options.messages)
        return
    with tempfile.TemporaryDirectory() as directory:
        config = {"appendonly": "no", "save": ""}
        with EmbeddedServer(Path(directory) / "server", config=config) as server:
            os.sched_setaffinity(server.pid, {min(os.sched_getaffinity(0))})
            if options.memory:
                run("memory", server, options.memory)
                return
            for title, names, messages in (
                ("One by one", ONE_BY_ONE, options.messages // 20),
                ("Many", MANY, options.messages),
            ):
                contestants = {name: lambda n=name, m=messages: run(n, server, m) for name in names}
                results = contest.run(contestants, options.rounds, "msg/s")
                contest.show(f"{title}: 200-byte orders with keys, {PARTITIONS} partitions", results,
                             next(iter(names)), "msg/s")  # fmt: skip
                print()


if __name__ == "__main__":
    main()
