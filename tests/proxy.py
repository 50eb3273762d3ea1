"""A proxy between a client and a Redis server, for faults of the network: lost replies, late bytes."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

_CHUNK = 1 << 16


class Proxy:
    """Listens on a free port of 127.0.0.1 and forwards to the server of `url` (unix:// or redis://).

    Every change takes effect for bytes that arrive after it. Thread-safe.
    """

    def __init__(self, url: str) -> None:
        self._upstream = url
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._routes: list[_Route] = []
        self._every = 0
        self._seen = 0
        self._closed = False
        self.loses: Literal["nothing", "requests", "replies"] = "nothing"
        """What is lost from now on, each time with its connection."""
        self.dropped = 0
        """Requests and replies that were lost."""
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def drop_replies(self, every: int) -> None:
        """Drop every so-many-th reply: what was asked has happened, and nobody hears of it. 0: none."""
        with self._lock:
            self._every = every

    def hold(self) -> int:
        """The connections that exist now deliver nothing any more, in both directions; how many these are."""
        with self._lock:
            routes = list(self._routes)
        for route in routes:
            route.flowing.clear()
        return len(routes)

    def release(self) -> None:
        """What was held arrives after all, also where the client has given up and closed meanwhile."""
        with self._lock:
            routes = list(self._routes)
        for route in routes:
            route.flowing.set()

    def lead_to(self, url: str) -> None:
        """Another server answers from now on, as after a failover: all connections break."""
        with self._lock:
            self._upstream = url
            routes, self._routes = self._routes, []
        for route in routes:
            route.end()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            routes, self._routes = self._routes, []
        # shutdown, because close alone does not end an accept that blocks in another thread
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for route in routes:
            route.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                server = _connect(self._upstream)
            except OSError:
                client.close()
                continue
            route = _Route(client, server)
            with self._lock:
                if self._closed:
                    route.end()
                    return
                self._routes.append(route)
            for work in (self._requests, self._replies):
                threading.Thread(target=work, args=(route,), name="proxy route", daemon=True).start()

    def _requests(self, route: _Route) -> None:
        while data := _read(route.client):
            route.flowing.wait()
            if self._loses_request() or not _write(route.server, data):
                break
        route.flowing.wait()
        self._remove(route)

    def _replies(self, route: _Route) -> None:
        while data := _read(route.server):
            route.flowing.wait()
            if self._drops() or not _write(route.client, data):
                break
        self._remove(route)

    def _loses_request(self) -> bool:
        with self._lock:
            lose = self.loses == "requests"
            self.dropped += lose
            return lose

    def _drops(self) -> bool:
        with self._lock:
            if self.loses == "replies":
                self.dropped += 1
                return True
            if not self._every:
                return False
            self._seen += 1
            drop = self._seen % self._every == 0
            self.dropped += drop
            return drop

    def _remove(self, route: _Route) -> None:
        with self._lock:
            if route in self._routes:
                self._routes.remove(route)
        route.end()


class _Route:
    """One connection of a client and ours to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.flowing = threading.Event()
        self.flowing.set()

    def end(self) -> None:
        self.flowing.set()
        for end in (self.client, self.server):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the other side was first
            finally:
                end.close()


def _connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        server = socket.socket(socket.AF_UNIX)
        server.connect(parts.path)
        return server
    return socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379))


def _read(end: socket.socket) -> bytes:
    try:
        return end.recv(_CHUNK)
    except OSError:
        return b""


def _write(end: socket.socket, data: bytes) -> bool:
    try:
        end.sendall(data)
    except OSError:
        return False
    return True
