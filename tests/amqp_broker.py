"""As much of an AMQP 0-9-1 broker as a Celery worker needs to start, and that can go silent in the middle.

It declares, binds and consumes what it is asked to, answers heartbeats, and delivers nothing. Silent it keeps
its connections, and takes and says nothing any more; new ones are taken by the kernel and never answered.
"""

from __future__ import annotations

import socket
import struct
import threading
from types import TracebackType
from typing import Any, Self

from amqp.serialization import dumps, loads

#: Seconds; the least that AMQP knows.
HEARTBEAT = 1
_METHOD, _HEARTBEAT, _END = 1, 8, b"\xce"

#: A request → the reply's number in the same class, and its arguments.
_REPLIES: dict[tuple[int, int], tuple[int, bytes]] = {
    (10, 11): (30, dumps("BlB", (2047, 131072, HEARTBEAT))),  # start-ok → tune
    (10, 40): (41, dumps("s", ("",))),  # open
    (10, 50): (51, b""),  # close
    (20, 10): (11, dumps("S", ("",))),  # a channel is opened
    (20, 40): (41, b""),  # and closed
    (40, 10): (11, b""),  # an exchange is declared
    (40, 20): (21, b""),  # and deleted
    (50, 20): (21, b""),  # a queue is bound
    (50, 40): (41, dumps("l", (0,))),  # and deleted
    (60, 10): (11, b""),  # qos
    (85, 10): (11, b""),  # confirm
}
#: A request that may say that it wants no reply → its arguments up to the last of its bits, which says so.
_NO_WAIT = {
    (40, 10): "Bssbbbbb",
    (40, 20): "Bsbb",
    (50, 10): "Bsbbbbb",
    (50, 20): "Bsssb",
    (50, 40): "Bsbbb",
    (60, 20): "Bssbbbb",
    (60, 30): "sb",
}


class AmqpBroker:
    """Listens on a free port of 127.0.0.1 until it is closed."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.settimeout(0.2)
        self._silent = threading.Event()
        self._closed = threading.Event()
        self._ends: list[socket.socket] = []
        self.consumed: set[str] = set()
        """Queues that somebody consumes from."""
        threading.Thread(target=self._accept, name="amqp broker", daemon=True).start()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self._listener.getsockname()[1]}//"

    def silence(self) -> int:
        """Nothing is read or said from now on; how many connections there are."""
        self._silent.set()
        return len(self._ends)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._listener.close()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        while not (self._closed.is_set() or self._silent.is_set()):
            try:
                end, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return  # closed
            self._ends.append(end)
            threading.Thread(target=self._serve, args=(end,), name="amqp client", daemon=True).start()

    def _serve(self, end: socket.socket) -> None:
        try:
            end.settimeout(60)
            _read(end, 8)  # AMQP 0 0 9 1
            start = dumps("ooFSS", (0, 9, {"product": "test"}, "PLAIN AMQPLAIN", "en_US"))
            _send(end, 0, 10, 10, start)
            while True:
                kind, channel, size = struct.unpack(">BHI", _read(end, 7))
                payload = _read(end, size + 1)[:-1]
                if self._silent.is_set():
                    self._closed.wait()
                    return
                if kind == _HEARTBEAT:
                    end.sendall(struct.pack(">BHI", _HEARTBEAT, 0, 0) + _END)
                elif kind == _METHOD:
                    self._answer(end, channel, payload)
        except OSError:
            return  # it has gone, or we have

    def _answer(self, end: socket.socket, channel: int, payload: bytes) -> None:
        about: tuple[int, int] = struct.unpack(">HH", payload[:4])
        arguments: list[Any] = loads(_NO_WAIT[about], payload, 4)[0] if about in _NO_WAIT else []
        if about == (60, 20):
            self.consumed.add(arguments[1])
        if arguments and arguments[-1]:
            return
        if about == (50, 10):  # a queue is declared
            _send(end, channel, 50, 11, dumps("sll", (arguments[1], 0, 0)))
        elif about in ((60, 20), (60, 30)):  # consuming begins, and ends
            _send(end, channel, 60, about[1] + 1, dumps("s", (arguments[2 if about[1] == 20 else 0],)))
        elif about in _REPLIES:
            number, reply = _REPLIES[about]
            _send(end, channel, about[0], number, reply)


def _send(end: socket.socket, channel: int, kind: int, number: int, arguments: bytes) -> None:
    payload = struct.pack(">HH", kind, number) + arguments
    end.sendall(struct.pack(">BHI", _METHOD, channel, len(payload)) + payload + _END)


def _read(end: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        some = end.recv(size - len(found))
        if not some:
            raise OSError("closed")
        found += some
    return found
