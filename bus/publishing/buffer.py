"""The messages of a producer that are not stored yet: in the open bundle, waiting, or on their way.

While threads are busy sending, the producer's own thread gets Python's lock back only after 5 ms
(sys.getswitchinterval), twice for each write. So bundles that have piled up go with one write, and `send`
gives way after each bundle. Otherwise the thread would fall behind. Measured: 5.5 → 5.0 µs a message, and a
backlog of 3,000 messages instead of 65,000.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from bus.errors import BufferFull, BusError, BusUnavailable, ProducerClosed, ReplyLost
from bus.publishing.future import PENDING, Bundle
from bus.publishing.waves import uncertain

#: Bytes of bundles that go with one write.
_WRITE_BYTES = 2 * 1024 * 1024
#: Failed messages that the next `flush` or `close` still knows, the latest. Each was logged.
_FAILED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a buffer; `Producer` says what each means."""

    linger: float
    batch_messages: int
    batch_bytes: int
    buffer_messages: int
    buffer_bytes: int
    blocks: bool
    """True: wait while the buffer is full. False: raise BufferFull."""


class Buffer:
    """The bundles of one producer. Thread-safe, but for the methods under "with the lock"."""

    def __init__(self, limits: Limits, *, on_cut: Callable[[Bundle], None], wake: Callable[[], None]) -> None:
        """`on_cut` is called with each complete bundle, `wake` when there is something to send.

        Both are called with the lock.
        """
        self._limits = limits
        self._on_cut = on_cut
        self._on_work = wake
        self.lock = threading.Lock()
        self._work = threading.Condition(self.lock)
        self._room = threading.Condition(self.lock)
        self.open = Bundle(self._hurry)
        """The bundle that takes new messages."""
        self._queue: deque[Bundle] = deque()
        self._flying: dict[int, Bundle] = {}
        self._messages = 0
        self._bytes = 0
        self._idle = True
        """True if nobody will look at the open bundle unless woken."""
        self.closed = False
        self._ends: float | None = None
        self._failed: list[tuple[Bundle, int, Exception]] = []
        self._room_waiters: list[Callable[[], None]] = []
        self.thread: threading.Thread | None = None
        """The thread that sends."""

    # ------------------------------------------------------------------ for those who send; with the lock

    def begin(self, size: int) -> Bundle:
        """Return a new open bundle for a first message of `size` bytes; wait for room if the limits say so.

        Raises BufferFull, ProducerClosed.
        """
        self.cut()
        if not self._has_room(size):
            self._wait_for_room(size)
        if self.closed:
            raise ProducerClosed("This producer is closed; the message was not taken.")
        bundle, limits = self.open, self._limits
        bundle.born = time.monotonic()
        # What is in the open bundle counts only when it is cut, so that counting costs nothing per message.
        bundle.most = min(limits.batch_messages, limits.buffer_messages - self._messages)
        bundle.most_bytes = max(size, min(limits.batch_bytes, limits.buffer_bytes - self._bytes))
        if self._idle:
            self._wake()
        return bundle

    def cut(self) -> None:
        """Queue the open bundle, which is complete, and open the next."""
        if self.open.messages:
            self._messages += len(self.open.messages)
            self._bytes += self.open.size
            self._on_cut(self.open)
            self._queue.append(self.open)
            self.open = Bundle(self._hurry)
            self._wake()

    def _wait_for_room(self, size: int) -> None:
        if size > self._limits.buffer_bytes:
            raise BufferFull(
                f"A message of {size:,} bytes does not fit into this producer: "
                f"buffer_bytes is {self._limits.buffer_bytes:,}."
            )
        if not self._limits.blocks:
            raise BufferFull(
                f"{self._messages:,} messages ({self._bytes:,} bytes) are on their way, as much as this "
                "producer may hold (buffer_messages, buffer_bytes); the message was not taken."
            )
        self._room.wait_for(lambda: self.closed or (self._has_room(size) and not self.open.messages))

    def _has_room(self, size: int) -> bool:
        return (
            self._messages < self._limits.buffer_messages and self._bytes + size <= self._limits.buffer_bytes
        )

    def _wake(self) -> None:
        self._on_work()
        self._work.notify()

    # ------------------------------------------------------------------ for the sender

    def take(self, *, wait: bool) -> list[Bundle]:
        """Return the next bundles that are due, for one write.

        Where none is due: wait for one, or return nothing. With `wait`, nothing means the end.
        """
        with self.lock:
            while not self._is_over():
                left = self.open.born + self._limits.linger - time.monotonic() if self.open else None
                if not self._queue and left is not None and (left <= 0 or self.closed):
                    self.cut()
                if self._queue:
                    return self._take_queue()
                if not wait or self.closed:
                    break
                self._idle = left is None
                self._work.wait(left)
            self._idle = False
            return []

    def _take_queue(self) -> list[Bundle]:
        self._idle = False
        taken: list[Bundle] = []
        size = 0
        while self._queue and (not taken or size + self._queue[0].size <= _WRITE_BYTES):
            bundle = self._queue.popleft()
            size += bundle.size
            taken.append(bundle)
            self._flying[id(bundle)] = bundle
        return taken

    def landed(self, bundle: Bundle, failed: list[tuple[int, Exception]]) -> None:
        """Free the room of a bundle of which nothing is on its way any more.

        `failed`: its failed messages, by index, with their errors.
        """
        with self.lock:
            if self._flying.pop(id(bundle), None) is None:
                return  # abandoned before
            self._messages -= len(bundle)
            self._bytes -= bundle.size
            self._failed += [(bundle, index, error) for index, error in failed]
            del self._failed[:-_FAILED]
            self._room.notify_all()
            waiting, self._room_waiters = self._room_waiters, []
        for callback in waiting:
            callback()

    def pause(self, seconds: float) -> bool:
        """Wait for so many seconds, less where `close` gives less; False if its time is over."""
        with self.lock:
            ends = time.monotonic() + seconds
            self._work.wait_for(lambda: self._is_over() or time.monotonic() >= ends, seconds)
            return not self._is_over()

    def _is_over(self) -> bool:
        return self._ends is not None and time.monotonic() >= self._ends

    # ------------------------------------------------------------------ for the producer

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` once a bundle has left, in the sender's thread; at once if the buffer is empty."""
        with self.lock:
            if self._flying or self._queue or self.open:
                self.cut()
                self._room_waiters.append(callback)
                return
        callback()

    def everything(self) -> list[Bundle]:
        """Return all bundles that are not done, the open one too."""
        with self.lock:
            self.cut()
            return [*self._flying.values(), *self._queue]

    def close(self, timeout: float | None) -> None:
        """Take no more messages. Those that are there may be sent for `timeout` seconds (None: for ever)."""
        with self.lock:
            if timeout is not None and self._ends is None:
                self._ends = time.monotonic() + timeout
            self.closed = True
            self.cut()
            self._work.notify_all()
            self._room.notify_all()

    def abandon(self, reason: str) -> int:
        """Take and send no more messages; fail all that are there, and return how many.

        Those that were sent may be stored (PublishUncertain). The others are not (BusUnavailable).
        """
        with self.lock:
            self.closed = True
            self._ends = time.monotonic()
            self.cut()
            rest = [*self._flying.values(), *self._queue]
            self._flying |= {id(bundle): bundle for bundle in self._queue}
            self._queue.clear()
            self._room.notify_all()
        return sum(self._fail(bundle, reason) for bundle in rest)

    def _fail(self, bundle: Bundle, reason: str) -> int:
        pending = [index for index in range(len(bundle)) if bundle.outcome(index) is PENDING]
        unsent = BusUnavailable(f"{reason} This message was not sent, so it was not written.")
        outcomes: dict[int, Exception] = {}
        for index in pending:
            topic = bundle.ref(index)[0]
            outcomes[index] = unsent if bundle.sent is None else uncertain(topic, ReplyLost(reason))
        bundle.settle(outcomes)
        self.landed(bundle, list(outcomes.items()))
        bundle.tell()
        return len(pending)

    def unasked(self) -> list[Exception]:
        """Return the errors since the last call of messages whose future nobody has asked."""
        with self.lock:
            failed, self._failed = self._failed, []
        return [error for bundle, index, error in failed if index not in bundle.asked]

    def _hurry(self, bundle: Bundle) -> None:
        """Send this bundle without lingering: somebody waits for a message of it."""
        if threading.current_thread() is self.thread:
            raise BusError("A callback must not wait for a message: nothing is sent until it has returned.")
        with self.lock:
            if bundle is self.open:
                self.cut()
