"""What a worker costs that has nothing to do: commands that it sends in a second, and shares of a core.

    python -m benchmarks.idle [--partitions N] [--groups N] [--seconds N] [--commands]

One worker serves all groups of one topic, on a server of its own. The first minute begins when it has taken
all lanes; the steady state is measured after it. What is sent is counted by MONITOR, which costs the server
a little. `--commands` shows what the server ran, in scripts too.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

from benchmarks import contest
from bus.client import Bus
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.values import TopicSpec

ROOT = Path(__file__).resolve().parent.parent
TICK = os.sysconf("SC_CLK_TCK")
#: Seconds that a worker may take to have all lanes.
PATIENCE = 120


class Monitor(threading.Thread):
    """Counts the commands that clients send; what scripts run is not sent."""

    def __init__(self, server: EmbeddedServer) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(server.url.removeprefix("unix://").partition("?")[0])
        self._socket.sendall(b"MONITOR\r\n")
        self.start()

    def run(self) -> None:
        for line in self._socket.makefile("rb"):
            self.sent += line.startswith(b"+") and b" lua] " not in line[:40]


class Idle:
    """A worker, and what is counted of it."""

    def __init__(self, server: EmbeddedServer, data: Path, partitions: int, groups: int) -> None:
        self.server = server
        self.bus = Bus(server.url, prefix=f"b{uuid.uuid4().hex[:8]}")
        self.partitions, self.groups = partitions, groups
        self.bus.registry.project([TopicSpec(name="bench", partitions=partitions)])
        specs = [GroupSpec(topic="bench", name=f"g{number}") for number in range(groups)]
        self.bus.registry.declare_groups(specs)
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
            "JITNEY_DATA": str(data),
            "BUS_URL": server.url,
            "BUS_PREFIX": self.bus.settings.prefix,
            "BENCH_GROUPS": str(groups),
        }
        command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "workers", "worker", "-c", "2",
                   "-l", "ERROR", "--without-gossip", "--without-mingle"]  # fmt: skip
        self.monitor = Monitor(server)
        self.worker = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)

    def wait(self) -> float:
        """Until all lanes are taken; how long it took."""
        began = time.monotonic()
        lanes = [
            self.bus.keys.partition("bench", number).lease(f"g{group}", "0")
            for number in range(self.partitions)
            for group in range(self.groups)
        ]
        while time.monotonic() < began + PATIENCE:
            if all(
                value and not value.startswith(b"free:") for value in self.bus.client.call("MGET", *lanes)
            ):
                return time.monotonic() - began
            time.sleep(0.5)
        raise TimeoutError("the worker did not take all lanes")

    def measure(self, seconds: float) -> tuple[int, Counter[str], float, float]:
        """Commands sent, and run, in so many seconds; and the shares of a core of worker and server."""
        calls = self._calls()
        sent, worker = self.monitor.sent, self._seconds(self._processes())
        server = self._seconds([self.server.pid])
        time.sleep(seconds)
        sent = self.monitor.sent - sent
        return (
            sent,
            self._calls() - calls,
            (self._seconds(self._processes()) - worker) / seconds,
            (self._seconds([self.server.pid]) - server) / seconds,
        )

    def stop(self) -> None:
        self.worker.send_signal(signal.SIGTERM)
        self.worker.wait(60)
        self.bus.close()

    def _calls(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for line in self.bus.client.call("INFO", "commandstats").decode().splitlines():
            if line.startswith("cmdstat_"):
                name, _, rest = line.removeprefix("cmdstat_").partition(":")
                found[name] = int(rest.partition("calls=")[2].partition(",")[0])
        return found

    def _processes(self) -> list[int]:
        children = Path(f"/proc/{self.worker.pid}/task/{self.worker.pid}/children").read_text().split()
        return [self.worker.pid, *map(int, children)]

    def _seconds(self, pids: list[int]) -> float:
        spent = 0.0
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            spent += (int(fields[11]) + int(fields[12])) / TICK
        return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--partitions", type=int, default=256)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--commands", action="store_true", help="which commands they are")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="jb") as directory,
        EmbeddedServer(Path(directory) / "s") as server,
    ):
        idle = Idle(server, Path(directory), options.partitions, options.groups)
        try:
            took = idle.wait()
            print(
                f"{contest.machine()}\n\n{options.partitions} partitions, {options.groups} groups; all lanes "
            )
            print(f"after {took:.1f} s\n\n| when | sent/s | run/s | worker | server |\n|---|---|---|---|---|")
            for name, seconds in (("first minute", 60.0), ("steady", options.seconds)):
                sent, calls, worker, served = idle.measure(seconds)
                ran = sum(calls.values()) / seconds
                print(
                    f"| {name} | {sent / seconds:,.1f} | {ran:,.1f} | {worker:.1%} | {served:.1%} |",
                    flush=True,
                )
                if options.commands:
                    print(", ".join(f"{each} {count / seconds:.2f}" for each, count in calls.most_common(15)))
        finally:
            idle.stop()


if __name__ == "__main__":
    main()
