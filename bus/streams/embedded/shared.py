"""The server that all processes of a directory share: started once, by whoever asks first."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bus.errors import BusUnavailable, ServerError
from bus.streams.embedded.place import PAUSE, Place, arguments, valkey_binary


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """A running embedded server."""

    pid: int
    socket: str
    directory: Path
    version: str
    """Name and version, such as "valkey 9.1.2"."""
    uptime: int
    """Seconds."""
    used_memory: int
    """Bytes."""


def ensure(directory: str | Path, timeout: float = 20.0) -> str:
    """The socket of the server of this directory, which is started unless it runs.

    The server outlives the process that started it; `stop` ends it. However many processes ask at the
    same moment, one server is started. Raises BusUnavailable with the end of the server's log if it
    does not answer within `timeout` seconds, and ConfigurationError if there is no server program.
    """
    place = Place(directory)
    if place.answers():
        return place.socket
    deadline = time.monotonic() + timeout
    with place.locked(deadline):
        started = False
        while not place.answers():
            hold = place.take_hold()
            if hold is not None:
                if started:
                    os.close(hold)
                    raise BusUnavailable(f"{place} ended at its start:\n{place.log_tail()}")
                _start(place, hold)
                started = True
            elif time.monotonic() > deadline:
                raise BusUnavailable(
                    f"{place} runs (pid {place.pid()}) but does not answer on {place.socket}. "
                    "If it is not loading its data, stop it with `manage.py bus server stop`.\n"
                    + place.log_tail()
                )
            time.sleep(PAUSE)
    return place.socket


def running_socket(directory: str | Path) -> str:
    """The socket of the server of this directory. Raises BusUnavailable if it does not run."""
    place = Place(directory)
    if not place.held():
        raise BusUnavailable(f"{place} does not run: start it with `manage.py bus server start`.")
    return place.socket


def status(directory: str | Path) -> ServerStatus | None:
    """Return what runs on this directory; None if nothing does. Raises BusUnavailable if it is silent."""
    place = Place(directory)
    if not place.held():
        return None
    facts = _info(place)
    return ServerStatus(
        pid=int(facts["process_id"]),
        socket=place.socket,
        directory=place.directory,
        version=f"{facts.get('server_name', 'redis')} {facts.get('valkey_version', facts['redis_version'])}",
        uptime=int(facts["uptime_in_seconds"]),
        used_memory=int(facts["used_memory"]),
    )


def stop(directory: str | Path, timeout: float = 10.0) -> bool:
    """End the server of this directory and wait until it is gone; False if none ran.

    All that it had acknowledged is in its append-only file. A server that does not end within
    `timeout` seconds is killed.
    """
    place = Place(directory)
    if not place.directory.is_dir():
        return False
    deadline = time.monotonic() + timeout
    with place.locked(deadline):
        ran = place.held()
        if ran and not _end(place, signal.SIGTERM, deadline):
            _end(place, signal.SIGKILL, time.monotonic() + timeout)
        if place.held():
            raise BusUnavailable(f"{place} (pid {place.pid()}) could not be stopped.")
        place.clear()
    return ran


def _start(place: Place, hold: int) -> None:
    try:
        command = arguments(valkey_binary(), place.prepare(), {"daemonize": "yes"})
        # The server inherits `hold`, so that the lock lives exactly as long as the server does.
        run = subprocess.run(  # noqa: S603 - our own command line, no shell
            command,
            cwd=place.directory,
            pass_fds=(hold,),
            umask=0o077,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    finally:
        os.close(hold)
    if run.returncode:
        text = run.stdout.decode(errors="replace").strip()
        raise BusUnavailable(f"{place} did not start: {text}\n{place.log_tail()}")


def _end(place: Place, kind: signal.Signals, deadline: float) -> bool:
    pid = place.pid()
    if pid is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, kind)
    return wait_for(lambda: not place.held(), deadline)


def wait_for(condition: Callable[[], bool], deadline: float) -> bool:
    """True as soon as the condition holds; False if it does not by the deadline (of time.monotonic())."""
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE)
    return True


def _info(place: Place) -> dict[str, str]:
    link = place.link()
    try:
        replies = link.pipe([("INFO", "server"), ("INFO", "memory")])
    finally:
        link.close()
    facts: dict[str, str] = {}
    for reply in replies:
        if isinstance(reply, ServerError):
            raise BusUnavailable(f"{place} gives no INFO: {reply}")
        lines = (line.partition(":") for line in reply.decode().splitlines())
        facts.update({name: value for name, colon, value in lines if colon})
    return facts
