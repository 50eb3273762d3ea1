"""Does what was planned, and keeps a record of it."""

from __future__ import annotations

import heapq
import itertools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from bus.client import Bus
from bus.errors import BusUnavailable
from bus.streams.embedded import EmbeddedServer
from tests.chaos.plan import SERVER_KINDS, Planned
from tests.chaos.processes import Fleet, Worker


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


class Injector:
    """Does faults, one after the other, without ever waiting for their end."""

    def __init__(self, server: EmbeddedServer, bus: Bus, fleet: Fleet) -> None:
        self._server = server
        self._bus = bus
        self._fleet = fleet
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._ends: dict[str, Fault] = {}
        self._server_down = False
        self.faults: list[Fault] = []

    def do(self, planned: Planned) -> Fault | None:
        """Do it now; None if there is nobody to do it to."""
        if planned.kind in SERVER_KINDS:
            return self._to_server(planned)
        candidates = [worker for worker in self._fleet.workers if worker.usable and worker.ready]
        if not candidates:
            return None
        return self._to_worker(planned, candidates[int(planned.pick * len(candidates))])

    def tend(self) -> None:
        """Do what is due: thaw, start the server, note who has gone."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        for worker in self._fleet.tend():
            if (fault := self._ends.pop(worker.name, None)) is not None:
                fault.until = time.monotonic_ns()

    def finish(self) -> None:
        """End all that lasts, at once: thaw, start the server."""
        for _, _, action in sorted(self._later):
            action()
        self._later.clear()

    # ------------------------------------------------------------------ workers

    def _to_worker(self, planned: Planned, worker: Worker) -> Fault | None:
        if planned.kind == "child":
            return self._kill_child(planned, worker)
        fault = self._note(planned.kind, worker=worker.name)
        if planned.kind == "freeze":
            worker.frozen = True
            worker.signal_all(signal.SIGSTOP)
            self._after(planned.seconds, lambda: self._thaw(worker, fault))
        else:
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

    def _thaw(self, worker: Worker, fault: Fault) -> None:
        worker.signal_all(signal.SIGCONT)
        worker.frozen = False
        fault.until = time.monotonic_ns()

    # ------------------------------------------------------------------ the server

    def _to_server(self, planned: Planned) -> Fault | None:
        if self._server_down:
            return None
        fault = self._note(planned.kind)
        if planned.kind == "connections":
            self._kill_connections()
            fault.until = time.monotonic_ns()
            return fault
        self._server_down = True
        if planned.kind == "redis-kill":
            self._server.kill()
        else:
            self._server.stop()
        self._after(planned.seconds, lambda: self._start_server(fault))
        return fault

    def _start_server(self, fault: Fault) -> None:
        # After kill(): its stale socket goes first.
        self._server.restart()
        self._server_down = False
        fault.until = time.monotonic_ns()

    def _kill_connections(self) -> None:
        try:
            self._bus.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            self._bus.client.call("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
        except BusUnavailable:
            return  # the server is away, and all connections with it

    # ------------------------------------------------------------------ inner

    def _note(self, kind: str, *, worker: str | None = None, pid: int | None = None) -> Fault:
        fault = Fault(kind, time.monotonic_ns(), worker=worker, pid=pid)
        self.faults.append(fault)
        return fault

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._number), action))
