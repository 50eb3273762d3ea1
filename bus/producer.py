"""The buffered producer: many threads hand in messages, one thread of its own writes them.

    send() → open batch ──full, old, or waited for──▶ queue ──▶ Sender ──▶ Redis
       ▲                                                          │
       └── PublishFuture ◀───── replies, errors ──────────────────┘

All batches go over one connection in the order in which they were begun, so the order of each partition is
that of the calls to `send`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from bus.errors import BufferFull, BusUnavailable, ConfigurationError, ProducerClosed
from bus.future import Batch, PublishFuture
from bus.packer import Packer
from bus.sender import Sender

if TYPE_CHECKING:
    from bus.client import Bus

logger = logging.getLogger("bus.producer")

#: How long the end of the process waits for what is still buffered. Seconds.
EXIT_SECONDS = 10.0
#: Bytes of batches that go with one write.
_WRITE_BYTES = 2 * 1024 * 1024
#: Failed messages that the next `flush` or `close` still knows, the latest. Each was logged.
_FAILED = 1000


class Producer:
    """Publishes in the background. Safe across threads and forks; to be closed, or used in a `with`."""

    def __init__(
        self,
        bus: Bus | None = None,
        *,
        linger: float = 0.005,
        batch_messages: int = 1000,
        batch_bytes: int = 512 * 1024,
        buffer_messages: int = 20_000,
        buffer_bytes: int = 32 * 1024 * 1024,
        on_full: Literal["block", "raise"] = "block",
        delivery_timeout: float = 60.0,
    ) -> None:
        """Opens no connection. `bus`: None is the default bus.

        `linger`: seconds that a message waits for others to share its write. `batch_messages`, `batch_bytes`:
        a batch has no more; batches that have piled up share a write. `buffer_messages`, `buffer_bytes`: so
        much may be on its way; then `send` waits ("block") or raises BufferFull ("raise").
        `delivery_timeout`: seconds after which a message fails that could not be written. Raises
        ConfigurationError.
        """
        for name, number, least in (
            ("linger", linger, 0), ("batch_messages", batch_messages, 1), ("batch_bytes", batch_bytes, 1),
            ("buffer_messages", buffer_messages, 1), ("buffer_bytes", buffer_bytes, 1),
            ("delivery_timeout", delivery_timeout, 0),
        ):  # fmt: skip
            if isinstance(number, bool) or not isinstance(number, int | float) or not number >= least:
                raise ConfigurationError(
                    f"Producer: {name} must be a number, {least} or more, not {number!r}."
                )
        if on_full not in ("block", "raise"):
            raise ConfigurationError(f"Producer: on_full must be 'block' or 'raise', not {on_full!r}.")
        self._given = bus
        self._linger = linger
        self._batch_messages = batch_messages
        self._batch_bytes = batch_bytes
        self._buffer_messages = buffer_messages
        self._buffer_bytes = buffer_bytes
        self._blocks = on_full == "block"
        self._delivery_timeout = delivery_timeout
        self._begin()
        _producers.add(self)

    def _begin(self) -> None:
        """Nothing is buffered: the state of a new producer, and of one in a child after a fork."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._open = Batch(self._hurry)
        self._queue: deque[Batch] = deque()
        self._flying: dict[int, Batch] = {}
        self._messages = 0
        self._bytes = 0
        self._turn = 0
        self._packers: dict[str, Packer] = {}
        self._idle = False
        self._closed = False
        self._ends: float | None = None
        self._failed: list[tuple[Batch, int, Exception]] = []
        self._room_waiters: list[Callable[[], None]] = []
        self._sender: Sender | None = None

    # ------------------------------------------------------------------ sending

    def send(
        self,
        topic: str,
        value: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
    ) -> PublishFuture:
        """Hand in one message; its receipt comes with the future. Arguments as of `bus.publish`.

        Messages without key and message_id stay with one partition for a batch, then go to the next. Raises
        InvalidMessage, UnknownTopic, ProducerClosed, BufferFull, and BusUnavailable where the topic is not
        known yet and Redis cannot be asked. Whatever becomes of the message later is in the future.
        """
        packer = self._packers.get(topic) or self._look_up(topic)
        if headers is None and message_id is None and delay is None and at is None:
            # The hot path: with the lock about 1 µs besides packing.
            message = packer.pack(value, key, self._turn)
            with self._lock:
                batch = self._open
                index = len(batch.messages)
                size = batch.size + len(message[1])
                if index == 0 or size > batch.most_bytes:
                    batch, index, size = self._begin_batch(len(message[1])), 0, len(message[1])
                batch.messages.append(message)
                batch.size = size
                full = index + 1 == batch.most
                if full:
                    self._cut()
            if full:
                time.sleep(0)  # lets the sender have Python's lock now: see _take_queue
            return PublishFuture(batch, index)
        message = packer.pack_any(
            value, key, headers, turn=self._turn, message_id=message_id, delay=delay, at=at
        )
        with self._lock:
            batch = self._open
            if not batch or batch.size + len(message[1]) > batch.most_bytes:
                batch = self._begin_batch(len(message[1]))
            batch.messages.append(message)
            batch.size += len(message[1])
            batch.scripted |= message_id is not None or delay is not None or at is not None
            if message_id is not None:
                batch.resendable.add(len(batch) - 1)
            future = PublishFuture(batch, len(batch) - 1)
            if len(batch) == batch.most:
                self._cut()
        return future

    def _begin_batch(self, size: int) -> Batch:
        """An open batch for a first message of `size` bytes; waits for room where that is wanted."""
        self._cut()
        if not self._has_room(size):
            self._wait_for_room(size)
        if self._closed:
            raise ProducerClosed("This producer is closed; the message was not taken.")
        batch = self._open
        batch.born = time.monotonic()
        # What is in the open batch counts only when it is cut, so that counting costs nothing per message.
        batch.most = min(self._batch_messages, self._buffer_messages - self._messages)
        batch.most_bytes = max(size, min(self._batch_bytes, self._buffer_bytes - self._bytes))
        if self._idle or self._sender is None:
            self._wake()
        return batch

    def _look_up(self, topic: str) -> Packer:
        """By the spec that is known, so that neither a slow nor an absent Redis keeps `send` waiting; the
        sender asks for a newer one. Only a topic's first message waits for Redis."""
        publisher = self._bus.publisher
        packer = self._packers[topic] = publisher.known_packer(topic) or publisher.packer(topic)
        return packer

    @property
    def _bus(self) -> Bus:
        if self._given is not None:
            return self._given
        from bus import default

        return default.get()

    def _wait_for_room(self, size: int) -> None:
        if size > self._buffer_bytes:
            raise BufferFull(
                f"A message of {size:,} bytes does not fit into this producer: "
                f"buffer_bytes is {self._buffer_bytes:,}."
            )
        if not self._blocks:
            raise BufferFull(
                f"{self._messages:,} messages ({self._bytes:,} bytes) are on their way, as much as this "
                "producer may hold (buffer_messages, buffer_bytes); the message was not taken."
            )
        self._room.wait_for(lambda: self._closed or (self._has_room(size) and not self._open.messages))

    def _has_room(self, size: int) -> bool:
        return self._messages < self._buffer_messages and self._bytes + size <= self._buffer_bytes

    def _cut(self) -> None:
        """The open batch is complete."""
        if self._open.messages:
            self._messages += len(self._open.messages)
            self._bytes += self._open.size
            self._open.topics = list(self._packers)
            self._queue.append(self._open)
            self._open = Batch(self._hurry)
            self._turn += 1
            self._packers.clear()
            self._wake()

    def _hurry(self, batch: Batch) -> None:
        """Somebody waits for a message of this batch."""
        with self._lock:
            if batch is self._open:
                self._cut()

    def _wake(self) -> None:
        if self._sender is None:
            bus = self._bus
            self._sender = Sender(
                bus.client,
                bus.publisher,
                self,
                delivery_timeout=self._delivery_timeout,
                window=bus.settings.dedupe_window,
            )
            self._sender.start()
        self._work.notify()

    # ------------------------------------------------------------------ for the sender

    def take(self, *, wait: bool) -> list[Batch]:
        """The next batches that are due. Without any: nothing, or wait; nothing then means the end."""
        with self._lock:
            while not self._is_over():
                left = self._open.born + self._linger - time.monotonic() if self._open else None
                if not self._queue and left is not None and (left <= 0 or self._closed):
                    self._cut()
                if self._queue:
                    return self._take_queue()
                if not wait or self._closed:
                    break
                self._idle = left is None
                self._work.wait(left)
                self._idle = False
            return []

    def _take_queue(self) -> list[Batch]:
        """Several batches go with one write when they have piled up.

        While another thread is busy the sender gets Python's lock back only after 5 ms
        (sys.getswitchinterval), twice for each write: with one batch in a write it would fall behind. So
        `send` gives way after each batch, too. Measured: 5.5 → 5.0 µs a message, and a backlog of 3,000
        instead of 65,000.
        """
        taken: list[Batch] = []
        size = 0
        while self._queue and (not taken or size + self._queue[0].size <= _WRITE_BYTES):
            batch = self._queue.popleft()
            size += batch.size
            taken.append(batch)
            self._flying[id(batch)] = batch
        return taken

    def landed(self, batch: Batch, failed: list[tuple[int, Exception]]) -> None:
        """Nothing of this batch is on its way any more."""
        with self._lock:
            self._flying.pop(id(batch), None)
            self._messages -= len(batch)
            self._bytes -= batch.size
            self._failed += [(batch, index, error) for index, error in failed]
            del self._failed[:-_FAILED]
            self._room.notify_all()
            waiting, self._room_waiters = self._room_waiters, []
        for callback in waiting:
            callback()

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call once when something has left the buffer, in the producer's thread; at once if it is empty."""
        with self._lock:
            if self._flying or self._queue or self._open:
                self._cut()
                self._room_waiters.append(callback)
                return
        callback()

    def pause(self, seconds: float) -> bool:
        """Wait so long; False if there is no time left at all."""
        with self._lock:
            ends = time.monotonic() + seconds
            self._work.wait_for(lambda: self._is_over() or time.monotonic() >= ends, seconds)
            return not self._is_over()

    def _is_over(self) -> bool:
        return self._ends is not None and time.monotonic() >= self._ends

    # ------------------------------------------------------------------ the end

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything handed in so far is stored or has failed, at most `timeout` seconds.

        Raises TimeoutError; else the first error since the last flush of a message whose future nobody asked,
        with a note on how many there were.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._cut()
            waiting = [*self._flying.values(), *self._queue]
        for batch in waiting:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            batch.wait_all(left)
        self._raise_unasked()

    def close(self, timeout: float | None = None) -> None:
        """Flush and end, after at most `timeout` seconds (None: as long as delivery_timeout lets it).

        What is not stored by then fails: BusUnavailable where it was surely not written, else
        PublishUncertain. Raises as flush. Idempotent.
        """
        with self._lock:
            if timeout is not None and self._ends is None:
                self._ends = time.monotonic() + timeout
            self._closed = True
            self._cut()
            self._work.notify_all()
            self._room.notify_all()
            sender = self._sender
        if sender is not None and sender is not threading.current_thread():
            patience = self._bus.settings.timeout + 1
            sender.join(None if timeout is None else timeout + patience)
        _producers.discard(self)
        if self._fail_the_rest():
            raise TimeoutError("The producer was closed before all of its messages were stored.")
        self._raise_unasked()

    def _fail_the_rest(self) -> int:
        """After the sender has ended: what it did not get to. How many messages."""
        with self._lock:
            rest = [*self._queue]
            self._queue.clear()
        error = BusUnavailable("The producer was closed before this message was sent; it was not written.")
        for batch in rest:
            batch.land([error] * len(batch))
            self.landed(batch, [])
        count = sum(len(batch) for batch in rest)
        if count:
            logger.error("The producer was closed with %s messages that were not sent.", f"{count:,}")
        return count

    def _raise_unasked(self) -> None:
        with self._lock:
            failed, self._failed = self._failed, []
        errors = [error for batch, index, error in failed if index not in batch.asked]
        if errors:
            errors[0].add_note(f"{len(errors):,} messages failed, and nobody asked for them.")
            raise errors[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as own:
            error.add_note(f"Besides, messages of the producer failed: {own!r}")

    def _after_fork(self) -> None:
        """In the child: what was buffered is the parent's to send."""
        closed = self._closed
        self._begin()
        self._closed = closed


_producers: weakref.WeakSet[Producer] = weakref.WeakSet()


def _forget_parent() -> None:
    for producer in list(_producers):
        producer._after_fork()


def _flush_at_exit() -> None:
    for producer in list(_producers):
        try:
            producer.close(EXIT_SECONDS)
        except Exception as error:
            logger.error("At the end of the process messages were not published: %s", error)


os.register_at_fork(after_in_child=_forget_parent)
atexit.register(_flush_at_exit)
