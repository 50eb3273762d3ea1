"""Consuming: a real Celery worker with everything on, against a hand-written redis-py loop.

    python -m benchmarks.consume [--messages N] [--rounds R]

Both sides do the same work on the same preloaded messages, with two processes, on the same server:
decode the JSON of a 200-byte order and call a Python function with it. A third contestant runs each
message as an ordinary Celery task (acks_late, no results). The clock runs from the moment
at which the first message is acknowledged to the moment at which nothing is left.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from benchmarks import contest
from bus.client import Bus
from bus.streams.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parent.parent
PARTITIONS = 8
#: Celery runs about a thousand a second.
TASKS = 3000


def order(number: int) -> dict[str, object]:
    """About 200 bytes of JSON."""
    return {
        "id": f"order-{number:09d}",
        "sku": f"SKU-{number % 997:05d}",
        "qty": number % 9 + 1,
        "price": 12.95,
        "customer": f"customer-{number % 5003:06d}",
        "note": "please leave it at the door, thank you",
    }


class Run:
    """One preloaded topic, and how far it is consumed."""

    def __init__(self, server: EmbeddedServer, messages: int) -> None:
        self.messages = messages
        self.bus = Bus(server.url, prefix=f"b{uuid.uuid4().hex[:8]}")
        self.bus.topic("bench", partitions=PARTITIONS)
        self.bus.publish_many("bench", map(order, range(messages)), key=lambda value: str(value["sku"]))
        self.streams = [self.bus.keys.partition("bench", number).stream for number in range(PARTITIONS)]

    def left(self) -> int:
        """Messages not settled yet; all of them while the group is missing."""
        left = 0
        for groups in self.bus.client.pipe([("XINFO", "GROUPS", stream) for stream in self.streams]):
            if not isinstance(groups, list) or not groups:
                return self.messages
            named = dict(zip(groups[0][::2], groups[0][1::2], strict=True))
            left += int(named[b"lag"] or 0) + int(named[b"pending"])
        return left

    def rate(self, go: Callable[[], None]) -> float:
        """Messages per second from the first settled one to the last."""
        go()
        _until(lambda: self.left() < self.messages)
        began, before = time.perf_counter(), self.left()
        _until(lambda: self.left() == 0)
        return before / (time.perf_counter() - began)

    def end(self) -> None:
        self.bus.client.call("FLUSHALL")
        self.bus.close()


def worker(server: EmbeddedServer, messages: int) -> float:
    """Jitney: `celery -A workers worker -c 2`."""
    run = Run(server, messages)
    with tempfile.TemporaryDirectory() as data:
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "benchmarks.settings", "JITNEY_DATA": data,
                       "BUS_URL": server.url, "BUS_PREFIX": run.bus.settings.prefix}  # fmt: skip
        command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "workers", "worker", "-c", "2",
                   "-l", "WARNING", "--without-gossip", "--without-mingle"]  # fmt: skip
        processes: list[subprocess.Popen[bytes]] = []
        try:
            return run.rate(lambda: processes.append(subprocess.Popen(command, cwd=ROOT, env=environment)))
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
                process.wait(30)
            run.end()


def loop(server: EmbeddedServer, messages: int) -> float:
    """The hand-written loop in two processes, half of the streams each."""
    run = Run(server, messages)
    for stream in run.streams:
        run.bus.client.call("XGROUP", "CREATE", stream, "bench", "0")
    command = [sys.executable, "-m", "benchmarks.loop", server.url, "bench"]
    processes = [
        subprocess.Popen([*command, f"c{half}", *run.streams[half::2]], cwd=ROOT, stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
        for half in (0, 1)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()

        def go() -> None:
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()

        return run.rate(go)
    finally:
        for process in processes:
            process.wait(30)
        run.end()


def tasks(server: EmbeddedServer, count: int) -> float:
    """One Celery task for each message, on the same Redis, in two processes."""
    broker = "redis+socket://" + server.url.removeprefix("unix://")
    environment = {**os.environ, "BENCH_BROKER": broker}
    subprocess.run(
        [sys.executable, "-m", "benchmarks.tasks", str(count)], cwd=ROOT, env=environment, check=True
    )
    client = Bus(server.url).client
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "benchmarks.tasks", "worker", "-c", "2",
               "-l", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"]  # fmt: skip
    worker = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        _until(lambda: int(client.call("LLEN", "celery")) < count)
        began, before = time.perf_counter(), int(client.call("LLEN", "celery"))
        _until(lambda: not client.call("EXISTS", "celery", "unacked"))
        return before / (time.perf_counter() - began)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
        client.call("FLUSHALL")
        client.close()


def _until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the run did not end in time")
        time.sleep(0.002)  # the clock's resolution


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        config = {"appendonly": "no", "save": ""}
        with EmbeddedServer(Path(directory) / "server", config=config) as server:
            contestants = {
                "redis-py loop": lambda: loop(server, options.messages),
                "jitney worker": lambda: worker(server, options.messages),
                "celery tasks": lambda: tasks(server, TASKS),
            }
            results = contest.run(contestants, options.rounds, "msg/s")
    contest.show("Consuming 200-byte orders, 8 partitions, 2 processes", results, "redis-py loop", "msg/s")


if __name__ == "__main__":
    main()
