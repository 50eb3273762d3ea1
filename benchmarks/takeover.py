"""How long until every partition is consumed again after a worker stops, dies, freezes or is restarted.

    python -m benchmarks.takeover [--events N] [--kinds stop,kill,freeze,restart]

Two workers share 8 partitions (for `restart` there is one). At the event one message is published to each
partition, and one more every 50 ms; the clock stops when each partition has settled one that was
published after the event. `freeze` stands for a lost host: nobody can prove that the worker is gone, its
beat just stands still. `restart` counts from the moment at which the new process enters itself among the
workers.
While a worker is taken over, the partitions of the other go on: the longest gap there is printed too.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import contest
from bus import observe
from bus.client import Bus
from bus.format.partition import partition_of
from bus.streams.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parent.parent
PARTITIONS = 8

Event = Callable[[], None]


@dataclass(frozen=True)
class Recovery:
    """What followed one event."""

    seconds: float
    """Until every partition was consumed again."""
    others: float
    """The longest time in which a partition of another worker was not consumed."""


class Fleet:
    """Workers that consume one topic, and how far each partition is settled."""

    def __init__(self, server: EmbeddedServer, data: Path) -> None:
        self.bus = Bus(server.url, prefix=f"b{uuid.uuid4().hex[:8]}")
        self.bus.topic("bench", partitions=PARTITIONS)
        self.bus.registry.project(self.bus.declared.specs().values())
        self._environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
            "JITNEY_DATA": str(data),
            "BUS_URL": server.url,
            "BUS_PREFIX": self.bus.settings.prefix,
        }
        self.workers: list[subprocess.Popen[bytes]] = []
        self._keys = _a_key_for_each_partition()

    def start(self) -> subprocess.Popen[bytes]:
        name = f"{uuid.uuid4().hex}@h"
        command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "workers", "worker", "-n", name,
                   "-c", "1", "-l", "ERROR", "--without-gossip", "--without-mingle"]  # fmt: skip
        worker = subprocess.Popen(
            command, cwd=ROOT, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def shared(self, workers: int) -> bool:
        """All partitions have owners, and every worker has some."""
        owners = {each.owner for each in self._partitions()}
        return None not in owners and len(owners) == workers

    def recovery(self, event: Event, begun: Callable[[], bool], victim: int) -> Recovery:
        """Do the event; watch until all partitions are settled beyond it."""
        before = {each.partition: _settled(each) for each in self._partitions()}
        others = {each.partition for each in self._partitions() if f"-{victim}-" not in (each.owner or "")}
        event()
        _until(begun)
        began = time.monotonic()
        moved = dict.fromkeys(before, began)
        done: dict[int, float] = {}
        longest = 0.0
        while len(done) < PARTITIONS:
            for key in self._keys:
                self.bus.publish("bench", {"qty": 1}, key=key)
            time.sleep(0.05)  # the rate of the probes
            now = time.monotonic()
            for each in self._partitions():
                if _settled(each) > before[each.partition]:
                    done.setdefault(each.partition, now - began)
                    before[each.partition] = _settled(each)
                    moved[each.partition] = now
                elif each.partition in others:
                    longest = max(longest, now - moved[each.partition])
            if now - began > 120:
                raise TimeoutError("not every partition is consumed again")
        return Recovery(max(done.values()), longest)

    def _partitions(self) -> list[observe.GroupPartitionSnapshot]:
        try:
            return observe.group(self.bus, "bench", "bench")[1]
        except LookupError:
            return []

    def end(self, worker: subprocess.Popen[bytes]) -> None:
        self.workers.remove(worker)
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(30)


def _settled(each: observe.GroupPartitionSnapshot) -> int:
    return (each.offset or 0) - (each.pending or 0)


def _a_key_for_each_partition() -> list[str]:
    keys: dict[int, str] = {}
    number = 0
    while len(keys) < PARTITIONS:
        keys.setdefault(partition_of(str(number), PARTITIONS), str(number))
        number += 1
    return list(keys.values())


def measure(kind: str, events: int, server: EmbeddedServer) -> list[Recovery]:
    """What followed each of so many events."""
    results = []
    with tempfile.TemporaryDirectory() as data:
        fleet = Fleet(server, Path(data))
        try:
            for number in range(events):
                results.append(_happen(fleet, kind))
                print(f"{kind} {number + 1}: {results[-1].seconds:.2f} s", file=sys.stderr, flush=True)
        finally:
            for worker in list(fleet.workers):
                fleet.end(worker)
            fleet.bus.close()
    return results


def _happen(fleet: Fleet, kind: str) -> Recovery:
    size = 1 if kind == "restart" else 2
    while len(fleet.workers) < size:
        fleet.start()
    _until(lambda: fleet.shared(size))
    victim = random.choice(fleet.workers)
    known = set(_incarnations(fleet.bus))

    def event() -> None:
        if kind == "stop":
            victim.send_signal(signal.SIGTERM)
        elif kind == "freeze":
            os.killpg(victim.pid, signal.SIGSTOP)
        else:
            victim.send_signal(signal.SIGKILL)
            victim.wait(30)
        if kind == "restart":
            fleet.start()

    def begun() -> bool:
        return kind != "restart" or not known.issuperset(_incarnations(fleet.bus))

    recovery = fleet.recovery(event, begun, victim.pid)
    fleet.end(victim)
    return recovery


def _incarnations(bus: Bus) -> list[str]:
    return [each.incarnation for each in observe.workers(bus)]


def _until(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the run did not go on in time")
        time.sleep(0.02)  # the clock's resolution


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--kinds", default="stop,kill,freeze,restart")
    options = parser.parse_args()
    print(f"Time until every partition is consumed again, {options.events} events of each kind")
    print(f"{contest.machine()}\n")
    print("| event | p50 s | max s | longest gap of the others s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory, EmbeddedServer(Path(directory) / "server") as server:
        for kind in options.kinds.split(","):
            recoveries = measure(kind, options.events, server)
            times = [recovery.seconds for recovery in recoveries]
            others = "-" if kind == "restart" else f"{max(recovery.others for recovery in recoveries):.2f}"
            print(f"| {kind} | {statistics.median(times):.2f} | {max(times):.2f} | {others} |", flush=True)


if __name__ == "__main__":
    main()
