"""The shop under test: its bus, its real Celery workers, and the ledger of what its handlers did."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bus import observe
from bus.client import Bus
from bus.errors import UnknownGroup
from bus.streams.commands import fields_of
from tests import nursery
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]

#: topic → (group, partitions), as in shop/topics.py and shop/consumers.py.
GROUPS = {
    "keyed": ("bykey", 8),
    "strict": ("inorder", 2),
    "loose": ("anyhow", 4),
    "batches": ("crates", 4),
    "limited": ("limits", 2),
    "awaited": ("waiters", 2),
}


@dataclass(frozen=True)
class Line:
    """One line of the ledger."""

    what: str
    topic: str
    partition: int
    id: str
    key: str
    n: int
    attempt: int
    pid: int
    at: int


def _line_of(raw: str) -> Line | None:
    """None: it is no line about a message, but what some handler has written besides."""
    parts = raw.split()
    if len(parts) != 9 or not parts[2].isdigit():
        return None
    what, topic, partition, id, key, *rest = parts
    return Line(what, topic, int(partition), id, key, *map(int, rest))


class Worker:
    """A real `celery -A workers worker`."""

    def __init__(self, shop: Shop, name: str, options: Iterable[str], *, chatty: bool = False) -> None:
        self.name = name
        self.log = shop.directory / f"{name}.log"
        self.log.touch()
        command = ["-m", "celery", "-A", "workers", "worker", "-n", f"{name}@%h", "-l", "INFO", *options]
        if not chatty:
            command += ["--without-gossip", "--without-mingle"]
        self._process = nursery.start(command, shop.environment, self.log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def says(self, text: str) -> bool:
        return text in self.log.read_text(errors="replace")

    def wait_ready(self) -> Worker:
        wait_until(
            lambda: self.says(" ready.") or self._process.poll() is not None, 60, f"{self.name} to be ready"
        )
        assert self._process.poll() is None, self.log.read_text(errors="replace")
        return self

    def children(self) -> list[int]:
        """The pool processes."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, timeout: float = 60) -> int:
        """Its exit code."""
        return self._process.wait(timeout)

    def stop(self) -> int:
        """Stop it as an operator would, and wait for it."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def freeze(self) -> None:
        """SIGSTOP for the whole of it, pool and all."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL; its pool processes die with it."""
        children = self.children()
        self.signal(signal.SIGKILL)
        self.wait()
        wait_until(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 20, "the pool to be gone"
        )

    def end(self) -> None:
        """At the end of a test, whatever its state."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self.wait()


class Shop:
    """One bus with its own prefix, and workers that consume from it."""

    def __init__(self, url: str, prefix: str, directory: Path) -> None:
        self.directory = directory
        self.bus = Bus(url, prefix=prefix)
        self.ledger = directory / "ledger"
        self.ledger.touch()
        self._workers: list[Worker] = []
        self._read: list[Line] = []
        self._read_to = 0
        self.environment = {
            **os.environ,
            "BUS_URL": url,
            "BUS_PREFIX": prefix,
            "JITNEY_DATA": str(directory / "data"),
            "DJANGO_SETTINGS_MODULE": "tests.acceptance.settings",
            "SHOP_LEDGER": str(self.ledger),
            "CELERY_QUEUE_PREFIX": prefix,
            "PYTHONWARNINGS": "ignore",
        }
        for topic, (_group, partitions) in GROUPS.items():
            self.bus.topic(topic, partitions=partitions)
        self.bus.registry.project(self.bus.declared.specs().values())

    # ------------------------------------------------------------------ doing

    def worker(self, name: str = "one", *options: str, chatty: bool = False) -> Worker:
        """Start a worker; `options` as for `celery worker`. `chatty`: it talks to others by the broker."""
        worker = Worker(self, name, options or ("-c", "2"), chatty=chatty)
        self._workers.append(worker)
        return worker

    def publish(self, topic: str, count: int, *, keys: int = 20, first: int = 0, **what: Any) -> list[str]:
        """Publish numbered messages with keys in turn; their ids."""
        values = ({"n": number, **what} for number in range(first, first + count))
        receipts = self.bus.publish_iter(topic, values, key=lambda value: f"k{value['n'] % keys}")
        return [f"{receipt.partition}/{receipt.id}" for receipt in receipts]

    def migrate(self) -> None:
        """Make the workers' database, which only some tests need."""
        nursery.run(["manage.py", "migrate", "-v", "0"], self.environment)

    def copied_marks(self, topic: str) -> list[str]:
        """The copies in the workers' database, by partition."""
        path = Path(self.environment["JITNEY_DATA"]) / "db.sqlite3"
        with sqlite3.connect(path) as database:
            rows = database.execute(
                "SELECT position FROM jitney_markcopy WHERE topic = ? ORDER BY partition", [topic]
            )
            return [position for (position,) in rows]

    def end(self) -> None:
        for worker in self._workers:
            worker.end()
        self.bus.close()

    # ------------------------------------------------------------------ seeing

    def lines(self, what: str = "end", topic: str | None = None) -> list[Line]:
        """The lines of the ledger so far. Each is read once, however often a test looks."""
        with self.ledger.open("rb") as ledger:
            ledger.seek(self._read_to)
            new, end, _ = ledger.read().rpartition(b"\n")
        self._read_to += len(new) + len(end)
        self._read += filter(None, map(_line_of, new.decode().splitlines()))
        return [line for line in self._read if line.what == what and topic in (None, line.topic)]

    def group(self, topic: str) -> observe.GroupSnapshot:
        return observe.group(self.bus, topic, GROUPS[topic][0])[0]

    def owners(self, topic: str) -> list[str | None]:
        """Who owns each partition; [None] while no worker has declared the group yet."""
        try:
            return [each.owner for each in observe.group(self.bus, topic, GROUPS[topic][0])[1]]
        except UnknownGroup:
            return [None]

    def lanes_of(self, worker: Worker, topic: str) -> set[int]:
        """The partitions that a worker owns."""
        owners = enumerate(self.owners(topic))
        return {number for number, owner in owners if owner and pid_of(owner) == worker.pid}

    def idle(self, topic: str) -> bool:
        """Everything that was published is settled."""
        try:
            group = self.group(topic)
        except UnknownGroup:
            return False  # no worker has declared it yet
        return group.lag is not None and group.lag.count == 0 and group.pending == 0

    def wait_idle(self, topic: str, timeout: float = 60) -> None:
        wait_until(lambda: self.idle(topic), timeout, f"{topic} to be settled", 0.05)

    def wait_owned(self, topic: str, timeout: float = 30) -> None:
        """Until every partition has an owner."""
        wait_until(lambda: all(self.owners(topic)), timeout, f"all partitions of {topic} to be owned")

    def wait_owners(self, topic: str, *workers: Worker, timeout: float = 40) -> None:
        """Until exactly these workers own the lanes of a topic."""
        mine = {worker.pid for worker in workers}

        def settled() -> bool:
            owners = self.owners(topic)
            return all(owners) and {pid_of(owner) for owner in owners if owner} == mine

        wait_until(settled, timeout, f"{topic} to be owned by {', '.join(worker.name for worker in workers)}")

    def dead_letters(self, topic: str) -> list[dict[str, bytes]]:
        group, partitions = GROUPS[topic]
        keys = [self.bus.keys.partition(topic, number).dead(group) for number in range(partitions)]
        return [
            fields_of(entry[1]) for key in keys for entry in self.bus.client.call("XRANGE", key, "-", "+")
        ]

    def wait_lines(
        self, count: int, what: str = "end", topic: str | None = None, timeout: float = 60
    ) -> None:
        def enough() -> bool:
            return len(self.lines(what, topic)) >= count

        wait_until(enough, timeout, f"{count} lines of {what}", 0.05)

    # ------------------------------------------------------------------ judging

    def assert_each_once(self, topic: str, count: int) -> None:
        """Every number from 0 was handled to its end, none twice."""
        seen = Counter(line.n for line in self.lines("end", topic))
        assert sorted(seen) == list(range(count)), f"lost: {sorted(set(range(count)) - set(seen))[:20]}"
        assert not {n: times for n, times in seen.items() if times > 1}

    def assert_each(self, topic: str, count: int) -> int:
        """Every number from 0 was handled to its end; how many were so more than once."""
        seen = Counter(line.n for line in self.lines("end", topic))
        assert sorted(seen) == list(range(count)), f"lost: {sorted(set(range(count)) - set(seen))[:20]}"
        return sum(1 for times in seen.values() if times > 1)

    def assert_order(self, topic: str, by: Callable[[Line], object]) -> None:
        """First completions came in publish order within each `by`."""
        last: dict[object, int] = defaultdict(lambda: -1)
        seen: set[int] = set()
        for line in sorted(self.lines("end", topic), key=lambda line: line.at):
            if line.n in seen:
                continue
            seen.add(line.n)
            assert line.n > last[by(line)], f"{line} came after {last[by(line)]}"
            last[by(line)] = line.n


def pid_of(incarnation: str) -> int:
    """The process of a worker. Incarnations are `host-pid-start-token`."""
    return int(incarnation.rsplit("-", 3)[1])
