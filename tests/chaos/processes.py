"""The processes of a run: workers that are replaced when they end, publishers, and what each is doing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from tests import nursery
from tests.chaos.shop.releases import OLD, RELEASES, ROLES, other, served

ROOT = Path(__file__).resolve().parents[2]

#: A worker that was told to end must have ended after so long. Seconds.
PATIENCE = 30.0
#: After SIGQUIT an operator's SIGKILL follows: Celery's handler can wait for ever for a pool process to which
#: the main process was just writing when the signal came.
QUIT_PATIENCE = 10.0


class Process:
    """A process that leads a group of its own, so that nothing of it stays."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        log.touch()
        self._process = nursery.start(command, environment, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def says(self, text: str) -> bool:
        return text in self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def signal_all(self, number: int) -> None:
        """To the process and all its children, also after it has ended itself."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def wait(self, timeout: float) -> int:
        return self._process.wait(timeout)

    def end(self) -> None:
        """Whatever its state: after this, nothing of it is left."""
        self.signal_all(signal.SIGKILL)
        self.wait(PATIENCE)


class Worker(Process):
    """One `celery -A workers worker`; each start has a name of its own, a release of the code, and a role."""

    def __init__(
        self,
        name: str,
        role: int,
        release: str,
        processes: int,
        environment: Mapping[str, str],
        directory: Path,
    ) -> None:
        command = ["-m", "celery", "-A", "workers", "worker", "-n", f"{name}@chaos",
                   "-c", str(processes), "-l", "INFO"]  # fmt: skip
        if groups := served(ROLES[role], release):
            # The others talk to each other over the broker, as a worker does by default.
            command += ["--groups", ",".join(groups), "--without-gossip", "--without-mingle"]
        own = {"CHAOS_WORKER": name, "CHAOS_RELEASE": release}
        super().__init__(name, command, {**environment, **own}, directory / f"{name}.log")
        self.role = role
        self.release = release
        self.groups = frozenset(groups or (serving.group for serving in RELEASES[release]))
        """What it serves."""
        self.ending = False
        """It was told to end, or killed."""
        self.frozen = False
        self.deadline = 0.0
        """When it must have ended, once it is ending."""
        self._ended_by = 0
        self._last_children: list[int] = []

    @property
    def ready(self) -> bool:
        return self.says(" ready.")

    @property
    def usable(self) -> bool:
        """A fault may choose it."""
        return self.code is None and not self.ending and not self.frozen

    def children(self) -> list[int]:
        """Its pool processes."""
        try:
            raw = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except FileNotFoundError:
            return self._last_children
        if raw.split():
            self._last_children = [int(pid) for pid in raw.split()]
        return self._last_children

    def begin_to_end(self, number: int) -> None:
        """Send the signal that ends it."""
        self.children()
        self.ending, self._ended_by = True, number
        self.deadline = time.monotonic() + (QUIT_PATIENCE if number == signal.SIGQUIT else PATIENCE)
        self.signal(number)

    @property
    def may_hang(self) -> bool:
        """It got the signal after which Celery itself sometimes hangs."""
        return self._ended_by == signal.SIGQUIT

    def tell_where(self) -> None:
        """Have it and its pool processes write their stacks into its log (see shop/consumers.py)."""
        self.signal_all(signal.SIGUSR2)
        time.sleep(1.0)  # nothing tells us that they have

    @property
    def gone(self) -> bool:
        """It and its last pool processes have ended."""
        return self.code is not None and not any(_lives(pid) for pid in self._last_children)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


class Fleet:
    """So many workers, always, of all roles: one that ends is replaced by one of its role."""

    def __init__(self, size: int, processes: int, environment: Mapping[str, str], directory: Path) -> None:
        self._size = size
        self._processes = processes
        self._environment = environment
        self._directory = directory
        self._started = 0
        self.release = OLD
        """What a worker that is started now runs."""
        self.releases = {OLD}
        """All that there have been."""
        self.workers: list[Worker] = []
        self.serves: dict[str, frozenset[str]] = {}
        """Every worker that there has been → its groups."""
        self.released: dict[str, str] = {}
        """Every worker that there has been → its release."""
        self.replacing = True
        self.problems: list[str] = []
        """What no fault explains."""

    @property
    def started(self) -> int:
        """How many workers there have been in all."""
        return self._started

    def deploy(self) -> None:
        """Begin to replace all workers, one after the other, by such of the other release."""
        self.release = other(self.release)
        self.releases.add(self.release)

    @property
    def deploying(self) -> bool:
        return any(worker.release != self.release for worker in self.workers)

    def served(self) -> frozenset[str]:
        """Groups that some worker serves that is at work now."""
        at_work = (worker.groups for worker in self.workers if worker.usable and worker.ready)
        return frozenset().union(*at_work)

    def tend(self) -> list[Worker]:
        """Replace those that ended, go on with a deploy; returns those of which nothing is left now."""
        gone = [worker for worker in self.workers if self._has_gone(worker)]
        self.workers = [worker for worker in self.workers if worker not in gone]
        working = [worker for worker in self.workers if not worker.ending]
        roles = [number % len(ROLES) for number in range(self._size)]
        for worker in working:
            roles.remove(worker.role)
        for role in roles if self.replacing else ():
            self._start(role)
        if self.replacing and not roles and all(worker.ready for worker in working):
            self._go_on_deploying(working)
        return gone

    def _start(self, role: int) -> None:
        self._started += 1
        name = f"w{self._started}"
        worker = Worker(name, role, self.release, self._processes, self._environment, self._directory)
        self.workers.append(worker)
        self.serves[name] = worker.groups
        self.released[name] = worker.release

    def _go_on_deploying(self, working: list[Worker]) -> None:
        """Stop one old worker, where all are at work and none is ending for it."""
        old = [worker for worker in working if worker.release != self.release and not worker.frozen]
        if old and not any(worker.ending for worker in self.workers):
            old[0].begin_to_end(signal.SIGTERM)

    def _has_gone(self, worker: Worker) -> bool:
        if worker.ending:
            if not worker.gone and time.monotonic() > worker.deadline:
                if not worker.may_hang:
                    self.problems.append(f"{worker.name} had not ended {PATIENCE:.0f} s after its signal")
                worker.tell_where()
                worker.end()
            return worker.gone
        if worker.code is not None:
            self.problems.append(f"{worker.name} ended by itself with exit code {worker.code}")
            worker.end()
            return True
        worker.children()
        return False

    def stop(self) -> None:
        """Stop all as an operator would."""
        self.replacing = False
        for worker in self.workers:
            if not worker.ending:
                worker.begin_to_end(signal.SIGTERM)
        while self.workers:
            self.tend()
            time.sleep(0.05)

    def end(self) -> None:
        """Leave nothing behind, whatever happened."""
        for worker in self.workers:
            worker.end()
