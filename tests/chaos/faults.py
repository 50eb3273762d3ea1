"""Does what was planned, and keeps a record of it."""

from __future__ import annotations

import heapq
import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bus.client import Bus
from bus.errors import BusUnavailable
from bus.streams.embedded import EmbeddedServer
from tests.chaos.plan import FREEZES, SERVER_KINDS, Planned
from tests.chaos.processes import Fleet, Worker
from tests.chaos.stranger import Stranger

#: A trap into which nobody walks is taken away after so long. Seconds.
TRAP_SECONDS = 10.0
#: Steps of a transaction (before or after a statement) that a trap may let pass.
STEPS = 8


@dataclass(slots=True)
class Fault:
    """One fault that was done. Times in ns of CLOCK_MONOTONIC."""

    kind: str
    at: int
    until: int | None = None
    """When it was over: the victim gone or thawed, the server back. None: it still is not."""
    worker: str | None = None
    """The worker that it hit; None: all."""
    pid: int | None = None
    """The one pool process that it hit; None: all."""
    since: int | None = None
    """The server has come back with data of then; None: with all that it had."""


class Injector:
    """Does faults, one after the other, without ever waiting for their end."""

    def __init__(
        self,
        server: EmbeddedServer,
        broker: EmbeddedServer,
        bus: Bus,
        fleet: Fleet,
        stranger: Stranger,
        trap: Path,
    ) -> None:
        self._server = server
        self._broker = broker
        self._bus = bus
        self._fleet = fleet
        self._stranger = stranger
        self._trap = trap
        self._caught = trap.with_suffix(".caught")
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._ends: dict[str, Fault] = {}
        self._server_busy = False
        self._broker_frozen = False
        self._trapped: Planned | None = None
        self._deploying: Fault | None = None
        self.faults: list[Fault] = []

    def do(self, planned: Planned) -> str:
        """Do it now; what was hit, in words."""
        if planned.kind in SERVER_KINDS:
            fault = self._to_server(planned)
        elif planned.kind == "broker":
            fault = self._freeze_broker(planned)
        elif planned.kind == "deploy":
            fault = self._deploy()
        elif planned.kind == "junk":
            fault = self._write_junk(planned)
        elif planned.kind == "trap":
            return self._lay_trap(planned)
        else:
            fault = self._to_some_worker(planned)
        return f"→ {fault.worker or 'all'}" if fault else "finds no victim"

    def tend(self) -> None:
        """Do what is due: thaw, start the server, note who has gone."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        self._look_into_the_trap()
        for worker in self._fleet.tend():
            if (fault := self._ends.pop(worker.name, None)) is not None:
                fault.until = time.monotonic_ns()
        if self._deploying is not None and not self._fleet.deploying:
            self._deploying.until = time.monotonic_ns()
            self._deploying = None

    def finish(self) -> None:
        """End all that lasts, at once: thaw, start the server, tidy up."""
        self._trap.unlink(missing_ok=True)
        self._trapped = None
        while self._later:
            heapq.heappop(self._later)[2]()

    @property
    def quiet(self) -> bool:
        """The server is as it should be now."""
        return not self._server_busy

    # ------------------------------------------------------------------ workers

    def _to_some_worker(self, planned: Planned) -> Fault | None:
        candidates = [worker for worker in self._fleet.workers if worker.usable and worker.ready]
        if not candidates:
            return None
        return self._to_worker(planned, candidates[int(planned.pick * len(candidates))])

    def _to_worker(self, planned: Planned, worker: Worker) -> Fault | None:
        if planned.kind == "child":
            return self._kill_child(planned, worker)
        if planned.kind in FREEZES:
            fault = self.freeze(worker, planned.kind)
            self._after(planned.seconds, lambda: self.thaw(worker, fault))
            return fault
        fault = self._note(planned.kind, worker=worker.name)
        ends = {"kill": signal.SIGKILL, "stop": signal.SIGTERM, "quit": signal.SIGQUIT}
        self._ends[worker.name] = fault
        worker.begin_to_end(ends[planned.kind])
        return fault

    def _kill_child(self, planned: Planned, worker: Worker) -> Fault | None:
        children = worker.children()
        if not children:
            return None
        pid = children[int(planned.pick * 1000) % len(children)]
        fault = self._note("child", worker=worker.name, pid=pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            self.faults.remove(fault)
            return None
        fault.until = time.monotonic_ns()
        return fault

    def freeze(self, worker: Worker, kind: str = "freeze") -> Fault:
        """The whole worker, until `thaw`."""
        fault = self._note(kind, worker=worker.name)
        worker.frozen = True
        worker.signal_all(signal.SIGSTOP)
        return fault

    def thaw(self, worker: Worker, fault: Fault) -> None:
        # Noted first: what it begins from now on, it begins after the thaw.
        fault.until = time.monotonic_ns()
        worker.signal_all(signal.SIGCONT)
        worker.frozen = False

    # ------------------------------------------------------------------ a freeze in a transaction

    def _lay_trap(self, planned: Planned) -> str:
        self._caught.unlink(missing_ok=True)
        laid = self._trap.with_suffix(".laid")
        laid.write_text(str(int(planned.pick * STEPS)))
        os.replace(laid, self._trap)
        self._trapped = planned
        self._after(TRAP_SECONDS, self._take_trap_away)
        return f"laid, at step {int(planned.pick * STEPS)}"

    def _look_into_the_trap(self) -> None:
        if self._trapped is None or not self._caught.exists():
            return
        planned, name = self._trapped, self._caught.read_text()
        self._caught.unlink()
        worker = next((each for each in self._fleet.workers if each.name == name and each.usable), None)
        if worker is not None:
            self._trapped = None
            self._to_worker(planned, worker)

    def _take_trap_away(self) -> None:
        self._trap.unlink(missing_ok=True)
        self._trapped = None

    # ------------------------------------------------------------------ the server

    def _to_server(self, planned: Planned) -> Fault | None:
        if self._server_busy:
            return None
        fault = self._note(planned.kind)
        if planned.kind == "connections":
            self._kill_connections()
            fault.until = time.monotonic_ns()
            return fault
        self._server_busy = True
        if planned.kind == "failover":
            fault.since = time.monotonic_ns()
            older = self._copy_data()
            self._after(planned.seconds, lambda: self._come_back_older(fault, older))
            return fault
        if planned.kind == "redis-kill":
            self._server.kill()
        else:
            self._server.stop()
        self._after(planned.seconds, lambda: self._start_server(fault))
        return fault

    def _start_server(self, fault: Fault) -> None:
        # After kill(): its stale socket goes first.
        self._server.restart()
        self._server_busy = False
        fault.until = time.monotonic_ns()

    def _data(self) -> Path:
        return self._server.directory / "appendonlydir"

    def _copy_data(self) -> Path:
        """What a replica would have now that is not told anything more."""
        older = self._server.directory / "older"
        shutil.rmtree(older, ignore_errors=True)
        shutil.copytree(self._data(), older)
        return older

    def _come_back_older(self, fault: Fault, older: Path) -> None:
        """The server is lost, and the replica that lags takes its place at the same address."""
        fault.at = time.monotonic_ns()
        self._server.kill()
        shutil.rmtree(self._data())
        older.rename(self._data())
        self._start_server(fault)

    def _kill_connections(self) -> None:
        try:
            self._bus.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            self._bus.client.call("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
        except BusUnavailable:
            return  # the server is away, and all connections with it

    # ------------------------------------------------------------------ others

    def _freeze_broker(self, planned: Planned) -> Fault | None:
        if self._broker_frozen:
            return None
        fault = self._note("broker")
        self._broker_frozen = True
        self._broker.freeze()

        def thaw() -> None:
            self._broker.thaw()
            self._broker_frozen = False
            fault.until = time.monotonic_ns()

        self._after(planned.seconds, thaw)
        return fault

    def _deploy(self) -> Fault | None:
        if self._fleet.deploying:
            return None
        self._deploying = self._note("deploy")
        self._fleet.deploy()
        return self._deploying

    def _write_junk(self, planned: Planned) -> Fault | None:
        undo = self._stranger.write(planned.pick)
        if undo is None:
            return None
        fault = self._note("junk")

        def tidy_up() -> None:
            if self._server_busy:
                self._after(1.0, tidy_up)
                return
            undo()
            fault.until = time.monotonic_ns()

        self._after(planned.seconds, tidy_up)
        return fault

    # ------------------------------------------------------------------ inner

    def _note(self, kind: str, *, worker: str | None = None, pid: int | None = None) -> Fault:
        fault = Fault(kind, time.monotonic_ns(), worker=worker, pid=pid)
        self.faults.append(fault)
        return fault

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._number), action))
