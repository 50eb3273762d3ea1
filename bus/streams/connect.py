"""Where Redis is, and connections to it: URLs, timeouts, a pool that is safe across threads and forks.

No write is ever sent again by the client. A reply that was lost surfaces as ReplyLost, and the
caller, who alone knows what a second copy would mean, decides.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis.exceptions
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.connection import parse_url as parse_redis_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from bus.errors import BusError, BusFull, BusUnavailable, ConfigurationError, ServerError
from bus.streams import embedded
from bus.streams.wire import Argument, Command, Link

SCHEMES = ("embedded", "redis", "rediss", "unix", "redis+sentinel")

#: Idle connections kept for the next call; more may exist while more threads call at once.
_IDLE_LINKS = 16

#: Error replies that mean "not now": the command was refused whole and nothing was written.
_NOT_NOW = frozenset(
    ("LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "TRYAGAIN", "BUSY",
     "MISCONF", "NOAUTH", "WRONGPASS", "NOPERM")
)  # fmt: skip


#: Replies of a server that was a master and is none any more: a new connection may lead to the new one.
_DEMOTED = frozenset(("READONLY", "MASTERDOWN"))


def is_demoted(reply: Any) -> bool:
    """Whether the connection that gave this reply is not worth keeping."""
    return isinstance(reply, ServerError) and reply.code in _DEMOTED


def error_of(reply: ServerError) -> BusError:
    """The bus's own error for an error reply of the server."""
    if reply.code == "OOM":
        return BusFull(f"Redis has reached maxmemory and refuses writes: {reply}")
    if reply.code in _NOT_NOW:
        return BusUnavailable(f"Redis refuses this for now: {reply}")
    if reply.code in ("MOVED", "ASK", "CROSSSLOT"):
        return ConfigurationError(
            f"This server is part of a Redis Cluster, which is not supported yet: {reply}"
        )
    return reply


def check(reply: Any) -> Any:
    """The reply, or its error raised."""
    if isinstance(reply, ServerError):
        raise error_of(reply)
    return reply


class Endpoint:
    """A server URL, checked, from which connections are made."""

    def __init__(self, url: str, *, timeout: float = 5.0, autostart: bool = False) -> None:
        """`autostart`: start the server of an embedded:// URL if nobody has yet."""
        self.url = url
        self.timeout = timeout
        self._autostart = autostart
        scheme = url.partition("://")[0] if "://" in url else ""
        if scheme == "redis+cluster":
            raise ConfigurationError("Redis Cluster is not supported yet; use the URL of a single server.")
        if scheme not in SCHEMES:
            raise ConfigurationError(
                f"{self.safe_url} is not a server URL: it must begin with "
                f"{', '.join(name + '://' for name in SCHEMES)}."
            )
        self._connection_class: Callable[..., AbstractConnection] = Connection
        self._options: dict[str, Any] = {}
        self._sentinels: tuple[list[tuple[str, int]], str] | None = None
        if scheme == "embedded":
            self._connection_class = UnixDomainSocketConnection
        elif scheme == "redis+sentinel":
            self._parse_sentinel(url)
        else:
            self._parse_plain(url)

    @property
    def directory(self) -> Path | None:
        """The directory of an embedded server, or None."""
        scheme, _, path = self.url.partition("://")
        return Path(path).expanduser().absolute() if scheme == "embedded" else None

    @property
    def safe_url(self) -> str:
        """The URL without its password, for logs and pages."""
        head, at, tail = self.url.rpartition("@")
        if not at:
            return self.url
        scheme, _, user = head.partition("://")
        return f"{scheme}://{user.partition(':')[0]}:***@{tail}"

    def connect(self, *, timeout: float | None = None) -> Link:
        """A new connection of one's own. Raises BusUnavailable."""
        connection_class, options = self._connection_class, dict(self._options)
        if self.directory is not None:
            start = embedded.ensure if self._autostart else embedded.running_socket
            options["path"] = start(self.directory)
        elif self._sentinels is not None:
            options["host"], options["port"] = self._discover()
        seconds = self.timeout if timeout is None else timeout
        options.update(
            socket_timeout=seconds,
            socket_connect_timeout=min(seconds, self.timeout),
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
            client_name="jitney",
        )
        if connection_class is UnixDomainSocketConnection:
            options.pop("socket_connect_timeout")
        return Link(connection_class(**options))

    def _parse_plain(self, url: str) -> None:
        try:
            options = dict(parse_redis_url(url))
        except ValueError as error:
            raise ConfigurationError(f"{self.safe_url} is not a server URL: {error}.") from error
        self._connection_class = options.pop("connection_class", Connection)
        self._options = options

    def _parse_sentinel(self, url: str) -> None:
        parts = urlsplit(url)
        name, _, db = parts.path.strip("/").partition("/")
        hosts = []
        for host in parts.netloc.rpartition("@")[2].split(","):
            address, _, port = host.partition(":")
            if not address or (port and not port.isdigit()):
                raise ConfigurationError(f"{self.safe_url}: {host!r} is not host or host:port.")
            hosts.append((address, int(port or 26379)))
        if not name:
            raise ConfigurationError(f"{self.safe_url} names no master: write redis+sentinel://h1,h2/<name>.")
        self._sentinels = (hosts, name)
        if parts.username or parts.password:
            self._options["username"] = unquote(parts.username or "") or None
            self._options["password"] = unquote(parts.password or "") or None
        self._options["db"] = int(db or parse_qs(parts.query).get("db", ["0"])[0])

    def _discover(self) -> tuple[str, int]:
        assert self._sentinels is not None
        hosts, name = self._sentinels
        sentinel = Sentinel(hosts, socket_timeout=self.timeout, retry=Retry(NoBackoff(), 0))
        try:
            host, port = sentinel.discover_master(name)
        except (redis.exceptions.RedisError, OSError) as error:
            raise BusUnavailable(
                f"No sentinel of {self.safe_url} knows the master {name!r}: {error}"
            ) from error
        finally:
            for client in sentinel.sentinels:
                client.close()
        return str(host), int(port)


class Client:
    """Calls to one server over a pool of links. Thread-safe; a forked child makes its own links."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._idle: list[Link] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def call(self, *command: Argument) -> Any:
        """One command and its reply. Raises BusUnavailable, ReplyLost, BusFull or ServerError."""
        return check(self._with_link(lambda link: link.pipe([command]))[0])

    def call_packed(self, packed: bytes) -> Any:
        """One command that is packed already, and its reply. Raises as `call`."""
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
        """Many commands in one round trip; errors of the server are ServerError values among the replies."""
        if not commands:
            return []
        return self._with_link(lambda link: link.pipe(commands))

    def borrow(self) -> Link:
        """A connected link for the caller alone; give it back with `give_back`."""
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
        """Return a borrowed link; one that is closed or out of step is thrown away."""
        if link.closed or link.pending:
            link.close()
            return
        with self._lock:
            if len(self._idle) < _IDLE_LINKS:
                self._idle.append(link)
                return
        link.close()

    def close(self) -> None:
        """Close all idle links. The client can be used again afterwards."""
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
