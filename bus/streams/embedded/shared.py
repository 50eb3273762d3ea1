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
from bus.streams.embedded.site import PAUSE, Site, arguments, valkey_binary


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
    """Return the socket of a directory's server; start it unless it runs.

    The server outlives the process that started it; `stop` ends it. However many processes ask at the
    same moment, one server is started. Raises BusUnavailable with the end of the server's log if it
    does not answer within `timeout` seconds, and ConfigurationError if there is no server program.
    """
    site = Site(directory)
    if site.answers():
        return site.socket
    deadline = time.monotonic() + timeout
    with site.locked(deadline):
        started = False
        while not site.answers():
            hold = site.take_hold()
            if hold is not None:
                if started:
                    os.close(hold)
                    raise BusUnavailable(f"{site} ended at its start:\n{site.log_tail()}")
                _start(site, hold)
                started = True
            elif time.monotonic() > deadline:
                raise BusUnavailable(
                    f"{site} runs (pid {site.pid()}) but does not answer on {site.socket}. "
                    "If it is not loading its data, stop it with `manage.py bus server stop`.\n"
                    + site.log_tail()
                )
            time.sleep(PAUSE)
    return site.socket


def running_socket(directory: str | Path) -> str:
    """Return the socket of a directory's server. Raises BusUnavailable if it does not run."""
    site = Site(directory)
    if not site.held():
        raise BusUnavailable(f"{site} does not run: start it with `manage.py bus server start`.")
    return site.socket


def status(directory: str | Path) -> ServerStatus | None:
    """Return the server that runs on a directory; None if none does. Raises BusUnavailable."""
    site = Site(directory)
    if not site.held():
        return None
    facts = _info(site)
    return ServerStatus(
        pid=int(facts["process_id"]),
        socket=site.socket,
        directory=site.directory,
        version=f"{facts.get('server_name', 'redis')} {facts.get('valkey_version', facts['redis_version'])}",
        uptime=int(facts["uptime_in_seconds"]),
        used_memory=int(facts["used_memory"]),
    )


def stop(directory: str | Path, timeout: float = 10.0) -> bool:
    """End a directory's server and wait until it is gone; return whether one ran.

    All that it has acknowledged is in its append-only file. A server that does not end within `timeout`
    seconds is killed. Raises BusUnavailable if even that does not end it.
    """
    site = Site(directory)
    if not site.directory.is_dir():
        return False
    deadline = time.monotonic() + timeout
    with site.locked(deadline):
        ran = site.held()
        if ran and not _end(site, signal.SIGTERM, deadline):
            _end(site, signal.SIGKILL, time.monotonic() + timeout)
        if site.held():
            raise BusUnavailable(f"{site} (pid {site.pid()}) could not be stopped.")
        site.clear()
    return ran


def _start(site: Site, hold: int) -> None:
    try:
        command = arguments(valkey_binary(), site.prepare(), {"daemonize": "yes"})
        # The server inherits `hold`, so that the lock lives exactly as long as the server does.
        run = subprocess.run(  # noqa: S603 - our own command line, no shell
            command,
            cwd=site.directory,
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
        raise BusUnavailable(f"{site} did not start: {text}\n{site.log_tail()}")


def _end(site: Site, kind: signal.Signals, deadline: float) -> bool:
    pid = site.pid()
    if pid is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, kind)
    return wait_for(lambda: not site.held(), deadline)


def wait_for(condition: Callable[[], bool], deadline: float) -> bool:
    """Wait until the condition holds; return False if it does not by the deadline, of time.monotonic()."""
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE)
    return True


def _info(site: Site) -> dict[str, str]:
    link = site.link()
    try:
        replies = link.pipe([("INFO", "server"), ("INFO", "memory")])
    finally:
        link.close()
    facts: dict[str, str] = {}
    for reply in replies:
        if isinstance(reply, ServerError):
            raise BusUnavailable(f"{site} gives no INFO: {reply}")
        lines = (line.partition(":") for line in reply.decode().splitlines())
        facts.update({name: value for name, colon, value in lines if colon})
    return facts
