"""One connection whose socket is ours: commands packed by hand, replies parsed by hiredis.

redis-py makes the connection (authentication, TLS, database, timeouts); from then on its client
code is out of the way. That is three times faster (a redis-py pipeline spends 4.6 of its 4.9 µs
per XADD in Python), and it is the only way to be sure of two things that a lost message hangs on:
nothing is ever sent twice by itself, and a WATCH never disappears by a silent reconnect.
"""

from __future__ import annotations

import math
import os
import select
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hiredis
import redis.exceptions
from redis.connection import AbstractConnection

from bus.errors import BusUnavailable, ReplyLost, ServerError

Argument = bytes | str | int | float
Command = Sequence[Argument]

#: Replies are read in pieces of this size: about a batch of 300 orders.
_READ_SIZE = 1 << 16

#: What a socket raises when time is up: by Python's clock, or by the kernel's.
_TIMEOUTS = (TimeoutError, BlockingIOError)


# hiredis declares a tuple of exactly one argument; it takes any number.
_pack: Callable[[tuple[Argument, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


def pack(command: Command) -> bytes:
    """Return one command in RESP."""
    return _pack(tuple(command))


def pack_all(commands: Iterable[Command]) -> bytes:
    """Return commands in RESP, for one write."""
    return b"".join([_pack(tuple(command)) for command in commands])


def add_head(stream: str, fields: int) -> bytes:
    """Return the beginning of each XADD of so many fields to a stream, up to the length of the first value.

    The first field is `v`. What follows is `<length>\\r\\n<value>\\r\\n`, and the other fields in full.
    NOMKSTREAM: a stream without its groups would lose messages for them, so none is ever made by XADD.
    """
    name = stream.encode()
    return b"*%d\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$10\r\nNOMKSTREAM\r\n$1\r\n*\r\n$1\r\nv\r\n$" % (
        4 + 2 * fields, len(name), name,
    )  # fmt: skip


class Link:
    """A connected socket. Not thread-safe. After any error it is closed and stays closed."""

    __slots__ = (
        "_connection", "_is_readable", "_reader", "_socket", "client_id", "history", "limit", "pending",
        "received",
    )  # fmt: skip

    def __init__(self, connection: AbstractConnection) -> None:
        """Connect. Raises BusUnavailable: then nothing was written."""
        self._socket: socket.socket | None = None
        self._connection = connection
        self.client_id = 0
        self.history = 0
        """The history of the server that this leads to (see bus.streams.history); 0: not known."""
        self.pending = 0
        self.received = 0
        """Bytes received since somebody set it to 0."""
        self.limit = math.inf
        """The most bytes to receive. Beyond it the link gives the connection up, as if it had broken. For
        replies whose content is not lost then.
        """
        try:
            connection.connect()
        except (redis.exceptions.RedisError, OSError, UnicodeError) as error:
            connection.disconnect()
            raise BusUnavailable(f"Cannot connect to Redis: {error}") from error
        self._socket = connection._sock
        self._let_kernel_keep_time()
        self._reader = hiredis.Reader(replyError=ServerError)
        self._is_readable = _watch(self.fileno())

    def _let_kernel_keep_time(self) -> None:
        """Have the kernel watch the timeout of a plain socket.

        Python's own timeouts cost a poll before each send and each receive: four system calls for a round
        trip instead of two. Sockets with TLS keep Python's, and those of gevent and eventlet theirs: they
        never block in the kernel, so its timeouts would not count.
        """
        sock = self._socket
        if type(sock) is not socket.socket or not (seconds := sock.gettimeout()):
            return
        timeout = struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        sock.settimeout(None)
        if not os.get_blocking(sock.fileno()):
            sock.settimeout(seconds)

    @property
    def closed(self) -> bool:
        return self._socket is None

    def fileno(self) -> int:
        """Return the number of the socket, for select(); -1 when closed."""
        return -1 if self._socket is None else self._socket.fileno()

    def close(self) -> None:
        self._socket = None
        self._connection.disconnect()

    def stale(self) -> bool:
        """Return whether the server has closed an idle connection, or sent something nobody asked for."""
        return self._socket is None or self._is_readable()

    def send(self, packed: bytes, replies: int) -> None:
        """Send packed commands, to which `replies` replies will come.

        Raises ReplyLost, or BusUnavailable if the link is closed.
        """
        if self._socket is None:
            raise BusUnavailable("This connection is closed.")
        try:
            self._socket.sendall(packed)
        except OSError as error:
            self.close()
            # A part may have arrived, so what was sent may have happened.
            raise ReplyLost(f"The connection to Redis broke while sending: {error}") from error
        self.pending += replies

    def receive(self) -> Any:
        """Return the next reply; an error of the server is a ServerError value. Raises ReplyLost."""
        if self._socket is None:
            raise BusUnavailable("This connection is closed.")
        reader = self._reader
        try:
            reply = reader.gets()
            while reply is False:  # RESP2 has no booleans: False only means "not enough data yet"
                data = self._socket.recv(_READ_SIZE)
                if not data:
                    raise ConnectionResetError("the server closed the connection")
                self.received += len(data)
                if self.received > self.limit:
                    raise OSError(f"gave up a reply of more than {self.limit:,} bytes")
                reader.feed(data)
                reply = reader.gets()
        except OSError as error:
            self.close()
            in_time = not isinstance(error, _TIMEOUTS)
            raise ReplyLost(f"Lost Redis: {error}" if in_time else "Redis did not answer in time.") from error
        except hiredis.ProtocolError as error:
            self.close()
            raise ReplyLost(f"Redis sent something that is not RESP: {error}") from error
        self.pending -= 1
        return reply

    def receive_many(self, count: int) -> list[Any]:
        """Return the next `count` replies; errors of the server are ServerError values.

        Raises ReplyLost; its `replies` are those that came before the connection broke.
        """
        replies: list[Any] = []
        gets, take = self._reader.gets, replies.append
        try:
            while len(replies) < count:
                reply = gets()
                if reply is False:
                    # Reads what is there, then goes on without a look at the socket until it is used up.
                    replies.append(self.receive())
                else:
                    take(reply)
                    self.pending -= 1
        except ReplyLost as error:
            error.replies = replies
            raise
        except hiredis.ProtocolError as error:
            self.close()
            lost = ReplyLost(f"Redis sent something that is not RESP: {error}")
            lost.replies = replies
            raise lost from error
        return replies

    def pipe(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write and return all replies; errors of the server are values among them."""
        self._check_in_step()
        self.send(pack_all(commands), len(commands))
        return self.receive_many(len(commands))

    def call(self, *command: Argument) -> Any:
        """Send one command and return its reply; an error of the server is a ServerError value."""
        self._check_in_step()
        self.send(pack(command), 1)
        return self.receive()

    def _check_in_step(self) -> None:
        """Raise if a reply is still to come: it would be taken for that of the next command."""
        if self.pending and self._socket is not None:
            raise RuntimeError(f"{self.pending} replies are still to be read on this connection.")


def _watch(fd: int) -> Callable[[], bool]:
    """Return a function that tells whether a socket can be read or has ended. eventlet has no poll()."""
    if not hasattr(select, "poll"):
        return lambda: bool(select.select([fd], [], [], 0)[0])
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP | select.POLLERR)
    return lambda: bool(poll.poll(0))
