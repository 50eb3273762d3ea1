"""One run: start everything, do the faults, drain, judge."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bus import observe
from bus.client import Bus
from bus.errors import BusError
from bus.streams.embedded import EmbeddedServer
from tests.chaos import plan
from tests.chaos.faults import Injector
from tests.chaos.judge import Leftover, Verdict, judge
from tests.chaos.ledger import read_handled, read_published
from tests.chaos.processes import ROOT, Fleet, Process
from tests.chaos.shop.topics import GROUPS
from tests.waiting import wait_until

PREFIX = "chaos"
PARTITIONS = {"keyed": 8, "loose": 4}
PUBLISHERS = 2

#: Every write is on disk before it is answered, so that a killed server loses nothing it acknowledged.
SERVER_CONFIG = {"appendonly": "yes", "appendfsync": "always"}

START_SECONDS = 90.0
TICK = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is like."""

    seconds: float = 60.0
    seed: int = 1
    only: tuple[str, ...] = plan.KINDS
    interval: float = 4.0
    """Seconds between two faults, on average."""
    rate: float = 150.0
    """Messages a second."""
    workers: int = 4
    processes: int = 2
    drain: float = 90.0
    """Seconds after the last fault within which everything must be settled."""
    sabotage: str = ""
    """Which promise the workers break; see `sabotage`."""


class Run:
    """One run in a directory of its own, where logs and ledgers stay."""

    def __init__(self, options: Options, directory: Path, say: Callable[[str], None]) -> None:
        self._options = options
        self._directory = directory
        self._say = say
        self._server = EmbeddedServer(directory / "server", config=SERVER_CONFIG)
        self._bus = Bus(self._server.url, prefix=PREFIX)
        self._published, self._handled = directory / "published", directory / "handled"
        environment = self._environment()
        self._fleet = Fleet(options.workers, options.processes, environment, directory)
        self._injector = Injector(self._server, self._bus, self._fleet)
        self._publisher_environment = environment
        self._publishers: list[Process] = []

    def __call__(self) -> Verdict:
        """Raises AssertionError if it cannot even start."""
        try:
            self._start()
            self._storm()
            self._drain()
            leftovers = self._leftovers()
            self._fleet.stop()
            self._injector.tend()
        finally:
            self._end()
            self._keep_faults()
        verdict = judge(read_published(self._published), read_handled(self._handled), self._injector.faults)
        verdict.leftovers = leftovers
        verdict.problems = [*self._fleet.problems, *self._publisher_problems()]
        return verdict

    # ------------------------------------------------------------------ the stages

    def _start(self) -> None:
        self._server.start()
        for name, partitions in PARTITIONS.items():
            self._bus.topic(name, partitions=partitions)
        self._bus.registry.project(self._bus.declared.specs().values())
        self._migrate()
        self._fleet.tend()
        wait_until(self._all_ready, START_SECONDS, "the workers to be ready")
        for number in range(PUBLISHERS):
            self._publishers.append(self._publisher(number))

    def _migrate(self) -> None:
        """Workers copy marks into the database."""
        command = [sys.executable, "-m", "django", "migrate", "--verbosity", "0", "--noinput"]
        subprocess.run(command, cwd=ROOT, env=self._environment(), check=True, timeout=START_SECONDS)

    def _all_ready(self) -> bool:
        self._fleet.tend()
        assert not self._fleet.problems, f"{self._fleet.problems}; logs are in {self._directory}"
        return all(worker.ready for worker in self._fleet.workers)

    def _publisher(self, number: int) -> Process:
        options = self._options
        command = [sys.executable, "-m", "tests.chaos.publisher", "--number", str(number),
                   "--rate", str(options.rate / PUBLISHERS), "--seed", str(options.seed),
                   "--ledger", str(self._published)]  # fmt: skip
        name = f"publisher{number}"
        return Process(name, command, self._publisher_environment, self._directory / f"{name}.log")

    def _storm(self) -> None:
        options = self._options
        coming = plan.draw(options.seed, options.seconds, options.only, options.interval)
        began = time.monotonic()
        while (now := time.monotonic() - began) < options.seconds:
            while coming and coming[0].at <= now:
                planned = coming.pop(0)
                fault = self._injector.do(planned)
                hit = f"→ {fault.worker or 'all'}" if fault else "finds no victim"
                self._say(f"{now:6.1f} s  {planned.kind} {hit}")
            self._injector.tend()
            time.sleep(TICK)

    def _drain(self) -> None:
        self._injector.finish()
        for publisher in self._publishers:
            publisher.signal(signal.SIGTERM)
        for publisher in self._publishers:
            publisher.wait(self._options.drain)
        self._say(f"The storm is over: {len(read_published(self._published)):,} messages are published.")
        deadline = time.monotonic() + self._options.drain
        while time.monotonic() < deadline and not self._settled():
            self._injector.tend()
            time.sleep(4 * TICK)

    def _settled(self) -> bool:
        return all(left.clean for left in self._leftovers())

    def _leftovers(self) -> list[Leftover]:
        return [self._leftover(topic, group) for topic, group in GROUPS.items()]

    def _leftover(self, topic: str, group: str) -> Leftover:
        try:
            seen = observe.group(self._bus, topic, group)[0]
        except BusError:
            return Leftover(group, None, None, None, None, None)
        lag = seen.lag.count if seen.lag is not None else None
        return Leftover(group, lag, seen.pending, seen.retrying, seen.held, seen.dead)

    def _end(self) -> None:
        for publisher in self._publishers:
            publisher.end()
        self._fleet.end()
        self._bus.close()
        self._server.stop()

    def _keep_faults(self) -> None:
        lines = [f"{fault}\n" for fault in self._injector.faults]
        (self._directory / "faults").write_text("".join(lines))

    # ------------------------------------------------------------------ inner

    def _publisher_problems(self) -> list[str]:
        return [
            f"{publisher.name} ended with exit code {publisher.code}"
            for publisher in self._publishers
            if publisher.code
        ]

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "BUS_URL": self._server.url,
            "BUS_PREFIX": PREFIX,
            "JITNEY_DATA": str(self._directory / "data"),
            "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
            "CHAOS_LEDGER": str(self._handled),
            "CHAOS_SEED": str(self._options.seed),
            "CHAOS_SABOTAGE": self._options.sabotage,
            "PYTHONWARNINGS": "ignore",
        }
