"""One run: start everything, do the faults, drain, judge."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bus import observe
from bus.client import Bus
from bus.errors import BusError
from bus.streams.commands import text
from bus.streams.embedded import EmbeddedServer
from tests import nursery
from tests.chaos import plan
from tests.chaos.bookings import Database
from tests.chaos.faults import Injector
from tests.chaos.judge import Leftover, Place, Verdict, book, judge
from tests.chaos.ledger import read_handled, read_published
from tests.chaos.ownership import Ownership
from tests.chaos.processes import Fleet, Process
from tests.chaos.service import Service
from tests.chaos.shop.releases import NEW, ONCE, calls, groups, ordered
from tests.chaos.stranger import Stranger
from tests.waiting import wait_until

PREFIX = "chaos"
PARTITIONS = {"keyed": 6, "loose": 4}
PUBLISHERS = 2
#: How many entries one look reads, to see which are still stored.
PAGE = 5_000

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
    """With three or more there are workers of all roles, which serve different groups."""
    processes: int = 2
    drain: float = 90.0
    """Seconds after the last fault within which everything must be settled."""
    database: str = "postgresql"
    """Where effects are booked: postgresql or sqlite."""
    sabotage: str = ""
    """Which promise the workers break; see `sabotage`."""


class Run:
    """One run in a directory of its own, where logs and ledgers stay."""

    def __init__(self, options: Options, directory: Path, say: Callable[[str], None]) -> None:
        self._options = options
        self._directory = directory
        self._say = say
        self._server = EmbeddedServer(directory / "server", config=SERVER_CONFIG)
        self._broker = EmbeddedServer(directory / "broker", config={"save": ""})
        self._bus = Bus(self._server.url, prefix=PREFIX)
        self._published, self._handled = directory / "published", directory / "handled"
        self._trap = directory / "trap"
        self._database = Database(options.database, directory)
        self._stranger = Stranger(self._bus, PARTITIONS)
        self._ownership = Ownership(self._bus, PARTITIONS)
        self._service = Service()
        self._publishers: list[Process] = []
        self._vanished: set[Place] = set()

    def __call__(self) -> Verdict:
        """Raises AssertionError if it cannot even start."""
        with self._database:
            self._fleet = Fleet(
                self._options.workers, self._options.processes, self._environment(), self._directory
            )
            self._injector = Injector(
                self._server, self._broker, self._bus, self._fleet, self._stranger, self._trap
            )
            try:
                self._start()
                self._storm()
                self._drain()
                leftovers, ownerless = self._leftovers(), self._ownership.now
                self._vanished = self._look_for_vanished()
                self._fleet.stop()
                self._injector.tend()
            finally:
                self._end()
                self._keep_faults()
            verdict = self._judge()
        verdict.leftovers, verdict.ownerless = leftovers, ownerless
        verdict.orphans = self._ownership.orphans
        verdict.unexcused = [
            orphan
            for orphan in verdict.orphans
            if not orphan.is_excused(self._injector.faults, self._fleet.serves)
        ]
        verdict.problems = [*self._fleet.problems, *self._publisher_problems()]
        return verdict

    def _judge(self) -> Verdict:
        published = read_published(self._published)
        verdict = judge(published, read_handled(self._handled), self._injector.faults, self._groups(),
                        ordered=ordered(), vanished=self._vanished,
                        calls={worker: calls(release) for worker, release in self._fleet.released.items()},
                        unserved=self._service.unserved(time.monotonic_ns()))  # fmt: skip
        topic = self._groups()[ONCE]
        places = [(each.topic, each.partition, each.id) for each in published if each.topic == topic]
        book(verdict, self._database.bookings(), places, self._vanished)
        return verdict

    def _groups(self) -> dict[str, str]:
        """All groups that there have been, with their topics."""
        return groups(self._fleet.releases)

    # ------------------------------------------------------------------ the stages

    def _start(self) -> None:
        self._server.start()
        self._broker.start()
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
        command = ["-m", "django", "migrate", "--verbosity", "0", "--noinput", "--run-syncdb"]
        nursery.run(command, self._environment(), START_SECONDS)

    def _all_ready(self) -> bool:
        self._fleet.tend()
        assert not self._fleet.problems, f"{self._fleet.problems}; logs are in {self._directory}"
        return all(worker.ready for worker in self._fleet.workers)

    def _publisher(self, number: int) -> Process:
        options = self._options
        command = ["-m", "tests.chaos.publisher", "--number", str(number),
                   "--rate", str(options.rate / PUBLISHERS), "--seed", str(options.seed),
                   "--ledger", str(self._published)]  # fmt: skip
        name = f"publisher{number}"
        return Process(name, command, self._environment(), self._directory / f"{name}.log")

    def _storm(self) -> None:
        options = self._options
        coming = plan.draw(options.seed, options.seconds, options.only, options.interval)
        began = time.monotonic()
        while (now := time.monotonic() - began) < options.seconds:
            while coming and coming[0].at <= now:
                planned = coming.pop(0)
                self._say(f"{now:6.1f} s  {planned.kind} {self._injector.do(planned)}")
            self._tend()
            time.sleep(TICK)

    def _tend(self) -> None:
        self._injector.tend()
        served = self._fleet.served()
        self._service.look(served, self._groups(), time.monotonic_ns())
        if self._injector.quiet:
            self._ownership.look(
                {group: topic for group, topic in self._groups().items() if group in served & ordered()}
            )

    def _drain(self) -> None:
        self._injector.finish()
        for publisher in self._publishers:
            publisher.signal(signal.SIGTERM)
        for publisher in self._publishers:
            publisher.wait(self._options.drain)
        self._say(f"The storm is over: {len(read_published(self._published)):,} messages are published.")
        if NEW in self._fleet.releases and self._fleet.release != NEW:
            self._fleet.deploy()  # the release that has all groups
        deadline = time.monotonic() + self._options.drain
        while time.monotonic() < deadline and not self._is_over():
            self._tend()
            time.sleep(4 * TICK)

    def _is_over(self) -> bool:
        return not self._fleet.deploying and not self._ownership.now and self._settled()

    def _settled(self) -> bool:
        return all(left.clean for left in self._leftovers())

    def _leftovers(self) -> list[Leftover]:
        return [self._leftover(topic, group) for group, topic in self._groups().items()]

    def _leftover(self, topic: str, group: str) -> Leftover:
        strange = self._stranger.added if topic == "keyed" else 0
        try:
            seen = observe.group(self._bus, topic, group)[0]
        except BusError:
            return Leftover(group, None, None, None, None, None)
        lag = seen.lag.count if seen.lag is not None else None
        return Leftover(group, lag, seen.pending, seen.retrying, seen.held, seen.dead, strange)

    def _look_for_vanished(self) -> set[Place]:
        """Published messages that the server has lost."""
        places = {(each.topic, each.partition, each.id) for each in read_published(self._published)}
        for topic, partitions in PARTITIONS.items():
            for partition in range(partitions):
                places -= {(topic, partition, id) for id in self._stored(topic, partition)}
        return places

    def _stored(self, topic: str, partition: int) -> Iterator[str]:
        stream, start = self._bus.keys.partition(topic, partition).stream, "-"
        while entries := self._bus.client.call("XRANGE", stream, start, "+", "COUNT", PAGE):
            yield from (text(id) for id, _ in entries)
            start = f"({text(entries[-1][0])}"

    def _end(self) -> None:
        for publisher in self._publishers:
            publisher.end()
        self._fleet.end()
        self._bus.close()
        self._server.stop()
        self._broker.stop()

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
            "CELERY_BROKER_URL": f"redis+socket://{self._broker.url.removeprefix('unix://')}",
            "JITNEY_DATA": str(self._directory / "data"),
            "JITNEY_DATABASE": self._database.url,
            "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
            "CHAOS_LEDGER": str(self._handled),
            "CHAOS_TRAP": str(self._trap),
            "CHAOS_SEED": str(self._options.seed),
            "CHAOS_SABOTAGE": self._options.sabotage,
            "PYTHONWARNINGS": "ignore",
        }
