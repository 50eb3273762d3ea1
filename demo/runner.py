"""`manage.py demo`: starts everything, keeps it running, ends it, checks the result.

The runner itself uses neither Django's database nor the default bus: it starts processes whose environment
points to the run's own directory and server, and looks at that server, and whether the outbox is empty.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import bus
from bus import observe
from bus.streams.embedded import EmbeddedServer
from demo.child import Child
from demo.exactness.reconcile import Database
from demo.family import CannotRun, Family
from demo.rundir import RunDirectory, new_run, password, remove_old
from demo.signals import Signals
from demo.status import Status

#: Seconds between two status lines.
_STATUS_SECONDS = 3.0

#: Seconds that a preparation, or the start of the web server, may take.
_START_SECONDS = 90.0

#: Settling fails when nothing at all has been handled for so many seconds. A takeover needs 20.
_NO_PROGRESS_SECONDS = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    seconds: float | None = None
    file: Path | None = None
    rate: float | None = None
    """Messages a second of all producers together; None: as fast as it goes."""
    producers: int = 2
    seed: int = 1
    port: int = 8000
    web: bool = True

    @property
    def endless(self) -> bool:
        return self.seconds is None and self.file is None


class _Interrupted(Exception):
    """SIGINT or SIGTERM has come."""


def run(options: Options, *, project: Path, data: Path, prefix: str, say: Callable[[str], object]) -> int:
    """Run the demo; return the exit code.

    0: the check found no difference, or an endless run was stopped. 1: differences, or something did not run.
    130: stopped before the check. `project`: where manage.py is. `data`: where the runs are kept.
    """
    with Signals() as signals, new_run(data) as files:
        for old in remove_old(data):
            say(f"Removed the files of an old run, {old}")
        demo = _Demo(options, project, files, prefix, signals, say)
        try:
            return demo.play(password(data))
        except _Interrupted:
            say("Stopping …")
            return 0 if options.endless else 130
        except (CannotRun, bus.BusError) as error:
            say(f"The demo cannot go on: {error}")
            return 1
        finally:
            demo.stop()
            say("Stopped: no process is left.")


class _Demo:
    def __init__(
        self,
        options: Options,
        project: Path,
        files: RunDirectory,
        prefix: str,
        signals: Signals,
        say: Callable[[str], object],
    ) -> None:
        self._options = options
        self._project = project
        self._files = files
        self._signals = signals
        self._say = say
        self._family = Family(say)
        self._server = EmbeddedServer(files.server)
        self._bus = bus.Bus(self._server.url, prefix=prefix)
        self._environment = _environment(files.path, self._server.url, prefix)
        self._listening: socket.socket | None = None
        self._last: Status | None = None
        self._status_due = 0.0

    def play(self, secret: str) -> int:
        """From the start of the server to the check."""
        self._server.start()
        self._finish("migrate", "migrate", "--no-input")
        names = {"USERNAME": "admin", "EMAIL": "admin@localhost", "PASSWORD": secret}
        self._environment |= {f"DJANGO_SUPERUSER_{name}": value for name, value in names.items()}
        self._finish("superuser", "createsuperuser", "--no-input")
        for name in names:
            del self._environment[f"DJANGO_SUPERUSER_{name}"]
        if self._options.web:
            self._start_web(secret)
        self._say(f"  Files   {self._files.path}")
        worker = ("-m", "celery", "-A", "workers", "worker", "-c", "2", "-l", "INFO")
        self._family.start(self._child("worker", *worker))
        self._produce()
        return self._check(self._settle())

    def stop(self) -> None:
        """End everything. A signal that comes meanwhile changes nothing."""
        self._family.stop()
        if self._listening:
            self._listening.close()
        self._bus.close()
        self._server.stop()

    # ------------------------------------------------------------------ the parts

    def _child(self, name: str, *arguments: str, descriptor: int | None = None) -> Child:
        return Child(
            name,
            [sys.executable, *arguments],
            directory=self._project,
            environment=self._environment,
            log=self._files.log(name),
            descriptor=descriptor,
        )

    def _finish(self, name: str, *arguments: str) -> None:
        """Run a command of manage.py to its end."""
        child = self._child(name, "manage.py", *arguments)
        child.start()
        try:
            self._wait_for(lambda: child.ended() is not None, f"manage.py {arguments[0]}", child)
        finally:
            child.kill()
        if child.ended():
            raise CannotRun(f"manage.py {arguments[0]} failed:\n{child.tail()}")

    def _start_web(self, secret: str) -> None:
        # Kept open by the runner, so that a web server that is started again is at the same address.
        self._listening = _listen(self._options.port)
        port, descriptor = self._listening.getsockname()[1], self._listening.fileno()
        child = self._child("web", "-m", "demo.web", str(descriptor), descriptor=descriptor)
        self._family.start(child)
        self._wait_for(lambda: _answers(port), "the web server", child)
        if self._options.port not in (0, port):
            self._say(f"Port {self._options.port} is taken; {port} is used.")
        self._say(f"  Admin   http://127.0.0.1:{port}/admin/")
        self._say(f"  Login   admin / {secret}")

    def _producers(self) -> list[Child]:
        options = self._options
        if options.file:
            arguments = ["--file", str(options.file.resolve())]
            return [self._producer("file", options.rate, arguments)]
        return [
            self._producer(
                f"producer-{number}",
                options.rate and options.rate / options.producers,
                ["--seed", str(options.seed), "--number", str(number), "--producers", str(options.producers)],
            )
            for number in range(1, options.producers + 1)
        ]

    def _producer(self, name: str, rate: float | None, arguments: list[str]) -> Child:
        ledger = str(self._files.ledgers / f"{name}.jsonl")
        pace = ["--rate", str(rate)] if rate else []
        return self._child(name, "-m", "demo.producer", ledger, "--name", name, *arguments, *pace)

    # ------------------------------------------------------------------ the phases

    def _produce(self) -> None:
        """Let the producers work until the file or the time is over."""
        producers = self._producers()
        names = frozenset(child.name for child in producers)
        for child in producers:
            self._family.start(child)
        end = time.monotonic() + self._options.seconds if self._options.seconds is not None else None
        finite = names if self._options.file else frozenset[str]()
        while not (finite and self._family.finished(finite)) and (end is None or time.monotonic() < end):
            self._tick(finite)
        self._family.stop(names)
        self._say("All is published; waiting until every group has settled it.")

    def _settle(self) -> Status:
        """Wait until nothing is waiting or under way; return that look.

        One look reads the groups one after another, and an alert may be published in between. So two looks
        must agree: at the first no handler of orders was at work any more, and after it the outbox was
        empty, so that no alert could come between the two.
        """
        quiet: Status | None = None
        best, since = -1, time.monotonic()
        while True:
            status = self._tick(frozenset())
            if status and status.settled and not self._outbox():
                if quiet and quiet.published == status.published:
                    self._say(status.line(self._last))
                    return status
                quiet = status
            elif status:
                quiet = None
            if status and status.handled > best:
                best, since = status.handled, time.monotonic()
            if time.monotonic() > since + _NO_PROGRESS_SECONDS:
                raise CannotRun(self._why_not_settled(status))

    def _outbox(self) -> int:
        """Return how many messages wait in the database."""
        with closing(Database.open(self._files.database)) as database:
            return database.waiting()

    def _check(self, status: Status) -> int:
        """Compare the database with the file or the ledgers, in a process of its own."""
        command = [sys.executable, "-m", "demo.exactness.reconcile", str(self._files.database)]
        command += ["--ledgers", str(self._files.ledgers)]
        if self._options.file:
            command += ["--file", str(self._options.file.resolve()), "--source", "file"]
        for group, dead in status.dead.items():
            command += ["--dead", f"{group}={dead}"]
        result = subprocess.run(
            command, cwd=self._project, env=self._environment, capture_output=True, text=True, check=False
        )
        self._say((result.stdout + result.stderr).rstrip())
        return result.returncode

    # ------------------------------------------------------------------ waiting

    def _tick(self, may_finish: frozenset[str]) -> Status | None:
        """Sleep for a moment, start again what has died, look, now and then say how it goes."""
        self._signals.wait(0.5)
        if self._signals.stopping:
            raise _Interrupted
        self._mend_server()
        self._family.watch(may_finish=may_finish)
        try:
            status = Status.of(observe.overview(self._bus))
        except bus.BusError as error:
            reason = f"the bus is away: {error}"
            self._tell(lambda: reason)
            return None
        if self._tell(lambda: status.line(self._last)):
            self._last = status
        return status

    def _tell(self, text: Callable[[], str]) -> bool:
        if time.monotonic() < self._status_due:
            return False
        self._status_due = time.monotonic() + _STATUS_SECONDS
        self._say(text())
        return True

    def _wait_for(self, condition: Callable[[], bool], what: str, child: Child) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not condition():
            self._signals.wait(0.05)
            if self._signals.stopping:
                raise _Interrupted
            if child.ended():
                raise CannotRun(f"{what} has ended with exit code {child.ended()}:\n{child.tail()}")
            if time.monotonic() > deadline:
                raise CannotRun(f"{what} was not ready within {_START_SECONDS:.0f} s:\n{child.tail()}")

    def _mend_server(self) -> None:
        if os.waitid(os.P_PID, self._server.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        self._say(f"valkey (pid {self._server.pid}) has ended")
        self._server.restart()
        self._say(f"valkey is started again (pid {self._server.pid})")

    def _why_not_settled(self, status: Status | None) -> str:
        text = f"nothing has been handled for {_NO_PROGRESS_SECONDS:.0f} s, and not all is settled.\n"
        if status is None:
            text += "The bus does not answer."
        elif status.missing:
            text += f"No worker serves {', '.join(status.missing)}."
        else:
            text += status.line(None)
        log = self._files.log("worker")
        with suppress(OSError):
            text += f"\nThe end of {log}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        return text


def _environment(run: Path, url: str, prefix: str) -> dict[str, str]:
    """Return the environment of children: the caller's, but with the run's own data and server."""
    unwanted = ("BUS_GROUPS", "BUS_READ_ONLY", "JITNEY_DATABASE")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    return environment | {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "JITNEY_DATA": str(run),
        "BUS_URL": url,
        "BUS_PREFIX": prefix,
        "PYTHONUNBUFFERED": "1",
    }


def _listen(port: int) -> socket.socket:
    """Return a socket that listens on 127.0.0.1, on this port or, if it is taken, on a free one."""
    for candidate in (port, 0):
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", candidate))
            listening.listen(128)
        except OSError:
            listening.close()
        else:
            return listening
    raise CannotRun("no port of 127.0.0.1 is free")


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/admin/login/")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
