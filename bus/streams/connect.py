"""Connections to Redis: timeouts, login, and a pool that is safe across threads and forks.

No write is ever sent again by the client. A reply that was lost surfaces as ReplyLost, and the
caller, who alone knows what a second copy would mean, decides.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from bus.errors import (
    BusError,
    BusFull,
    BusUnavailable,
    ConfigurationError,
    Forbidden,
    ForeignData,
    PartitionFull,
    ServerError,
)
from bus.safety.secret import Secret, SecretBytes
from bus.streams import embedded
from bus.streams.sentinel import master_of
from bus.streams.url import Address, Url, parse
from bus.streams.wire import Argument, Command, Link, pack_all

#: Idle connections kept for the next call; more may exist while more threads call at once.
_IDLE_LINKS = 16

#: Error replies that mean "not now": the command was refused whole and nothing was written.
_NOT_NOW = frozenset(
    ("LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN", "BUSY",
     "MISCONF", "NOAUTH", "WRONGPASS")
)  # fmt: skip


#: Replies of a server that was a master and is none any more: a new connection may lead to the new one.
_DEMOTED = frozenset(("READONLY", "MASTERDOWN"))


def is_demoted(reply: Any) -> bool:
    """Return whether a reply says that the server is no master any more: then drop the link."""
    return isinstance(reply, ServerError) and reply.code in _DEMOTED


def is_forbidden(reply: Any) -> bool:
    """Return whether a reply says that access rules (ACL) refuse a command, or one inside a script."""
    return isinstance(reply, ServerError) and (
        reply.code == "NOPERM"
        or "The user executing the script can't" in str(reply)  # Redis
        or "ACL failure in script" in str(reply)  # Valkey
    )


def error_of(reply: ServerError) -> BusError:
    """Return the bus's own error for an error reply of the server."""
    if is_forbidden(reply):
        return Forbidden(f"The access rules of Redis forbid this to our user: {reply}")
    if reply.code == "OOM":
        return BusFull(f"Redis has reached maxmemory and refuses writes: {reply}")
    if "exhausted the last possible ID" in str(reply):
        return PartitionFull(
            "The last message there has the greatest id that there can be, which somebody has given by hand: "
            f"no message can follow it. `bus doctor` names the partition, and says what to do. ({reply})"
        )
    if reply.code == "WRONGTYPE":
        return ForeignData(f"A key of the bus holds something else; `bus doctor` names it: {reply}")
    if reply.code in _NOT_NOW:
        return BusUnavailable(f"Redis refuses this for now: {reply}")
    if reply.code in ("MOVED", "ASK", "CROSSSLOT"):
        return ConfigurationError(
            f"This server is part of a Redis Cluster, which is not supported yet: {reply}"
        )
    return reply


def seconds_of(reply: Any) -> float:
    """Return the reply to TIME as seconds since 1970; the time of this machine if TIME is forbidden."""
    if is_forbidden(reply):
        return time.time()
    seconds, micros = check(reply)
    return int(seconds) + int(micros) / 1e6


def check(reply: Any) -> Any:
    """Return a reply; raise it if it is an error."""
    if isinstance(reply, ServerError):
        raise error_of(reply)
    return reply


class Endpoint:
    """A checked server URL, which makes connections."""

    def __init__(self, url: str | Address, *, timeout: float = 5.0, autostart: bool = False) -> None:
        """`timeout`: seconds. `autostart`: start the server of an embedded:// URL if it does not run."""
        url = url if isinstance(url, Address) else Url(url)  # a traceback may show what this frame holds
        self.address = url if isinstance(url, Address) else parse(url)
        self.timeout = timeout
        self._autostart = autostart

    @property
    def directory(self) -> Path | None:
        """The directory of an embedded server; None for other URLs."""
        if self.address.scheme != "embedded":
            return None
        return Path(self.address.path).expanduser().absolute()

    @property
    def safe_url(self) -> str:
        """The URL without its password, for logs and pages."""
        return self.address.masked

    def connect(self, *, timeout: float | None = None) -> Link:
        """Open a connection for the caller alone. `timeout`: seconds. Raises BusUnavailable."""
        address = self.address
        seconds = self.timeout if timeout is None else timeout
        greeting = _greeting(address.username, address.password, address.db)
        if self.directory is not None:
            start = embedded.ensure if self._autostart else embedded.running_socket
            return self._open_socket(start(self.directory), seconds, greeting)
        if address.scheme == "unix":
            return self._open_socket(address.path, seconds, greeting)
        host, port = master_of(address, self._sentinel) if address.has_sentinels else address.hosts[0]
        return self._open_host(host, port, seconds, greeting, tls=address.has_tls)

    def _sentinel(self, host: str, port: int) -> Link:
        """Open a connection to a sentinel. Sentinels have users and passwords of their own."""
        address = self.address
        greeting = _greeting(address.sentinel_username, address.sentinel_password, 0)
        return self._open_host(host, port, self.timeout, greeting, tls=address.sentinel_tls)

    def _open_socket(self, path: str, seconds: float, greeting: Sequence[Command]) -> Link:
        made = UnixDomainSocketConnection(  # type: ignore[abstract] # an omission of redis-py's types
            path=path,
            socket_timeout=seconds,
            socket_connect_timeout=min(seconds, self.timeout),
            **_COMMON,
        )
        return _greet(Link(made), greeting)

    def _open_host(
        self, host: str, port: int, seconds: float, greeting: Sequence[Command], *, tls: bool
    ) -> Link:
        kind, options = (SSLConnection, self.address.tls) if tls else (Connection, {})
        made = kind(
            host=host,
            port=port,
            socket_timeout=seconds,
            socket_connect_timeout=min(seconds, self.timeout),
            socket_keepalive=self.address.socket_keepalive,
            **_COMMON,
            **options,
        )
        return _greet(Link(made), greeting)


#: redis-py only connects: what is said to the server first is ours, so that passwords stand in no frame of
#: its own, and a server that forbids giving names to connections can be used.
_COMMON: dict[str, Any] = {
    "protocol": 2,
    "retry": Retry(NoBackoff(), 0),
    "decode_responses": False,
    "redis_connect_func": lambda _connection: None,
}


def _greeting(username: str | None, password: Secret | None, db: int) -> list[Command]:
    commands: list[Command] = []
    if username or password:
        commands.append(("AUTH", username, password or "") if username else ("AUTH", password or ""))
    if db:
        commands.append(("SELECT", db))
    return [*commands, ("CLIENT", "SETNAME", "jitney")]


def _greet(link: Link, greeting: Sequence[Command]) -> Link:
    """Log in and choose the database. Raises BusUnavailable; then the connection is closed."""
    try:
        link.send(SecretBytes(pack_all(greeting)), len(greeting))
        replies = link.receive_many(len(greeting))
    except BusUnavailable as error:
        problem = str(error)
    except BaseException:  # such as a signal in the midst of it
        link.close()
        raise
    else:
        problem = next(filter(None, map(_refusal, greeting, replies)), "")
        if not problem:
            return link
    link.close()
    raise BusUnavailable(f"Cannot connect to Redis: {problem}")


def _refusal(command: Command, reply: Any) -> str:
    """Return why a reply to the greeting makes the connection useless; "" if it does not."""
    if not isinstance(reply, ServerError):
        return ""
    # A name is only for those who look at CLIENT LIST; who may not give one can do all else.
    if command[0] == "CLIENT" and reply.code != "NOAUTH":
        return ""
    # A server that does not know AUTH quotes what it was given.
    return str(reply).partition(", with args")[0]


class Client:
    """Calls one server over a pool of links. Thread-safe. A forked child makes its own links."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._idle: list[Link] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def call(self, *command: Argument) -> Any:
        """Send one command and return its reply. Raises BusUnavailable, ReplyLost, BusFull or ServerError."""
        return check(self._with_link(lambda link: link.pipe([command]))[0])

    def call_packed(self, packed: bytes) -> Any:
        """Send one packed command and return its reply. Raises what `call` raises."""
        link = self.borrow()
        try:
            link.send(packed, 1)
            reply = link.receive()
            if is_demoted(reply):
                link.close()
        finally:
            self.give_back(link)
        return check(reply)

    def pipe(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one round trip and return the replies; errors of the server are values among them.

        Raises BusUnavailable or ReplyLost.
        """
        if not commands:
            return []
        return self._with_link(lambda link: link.pipe(commands))

    def pipe_packed(self, packed: bytes, replies: int) -> list[Any]:
        """Send packed commands as `pipe` does. `replies`: how many there are."""

        def work(link: Link) -> list[Any]:
            link.send(packed, replies)
            return link.receive_many(replies)

        return self._with_link(work)

    def borrow(self) -> Link:
        """Return a connected link for the caller alone, who gives it back by `give_back`.

        Raises BusUnavailable.
        """
        self._forget_links_of_parent()
        while True:
            with self._lock:
                link = self._idle.pop() if self._idle else None
            if link is None:
                return self.endpoint.connect()
            if not link.stale():
                return link
            link.close()

    def give_back(self, link: Link) -> None:
        """Take a borrowed link back. It is thrown away if it is closed, or a reply is still to come."""
        if link.closed or link.pending:
            link.close()
            return
        with self._lock:
            if len(self._idle) < _IDLE_LINKS:
                self._idle.append(link)
                return
        link.close()

    def close(self) -> None:
        """Close all idle links. You can use the client again."""
        with self._lock:
            links, self._idle = self._idle, []
        for link in links:
            link.close()

    def _with_link(self, work: Callable[[Link], list[Any]]) -> list[Any]:
        link = self.borrow()
        try:
            replies = work(link)
            if any(map(is_demoted, replies)):
                link.close()
            return replies
        finally:
            self.give_back(link)

    def _forget_links_of_parent(self) -> None:
        if self._pid != os.getpid():
            # The sockets are shared with the parent: they must not be used, nor shut down.
            self._lock = threading.Lock()
            self._idle = []
            self._pid = os.getpid()
