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
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from bus.errors import ConfigurationError
from bus.publishing import future
from bus.publishing.buffer import Buffer, Limits
from bus.publishing.future import Batch, PublishFuture
from bus.publishing.options import PublishOptions
from bus.publishing.packer import Packer
from bus.publishing.sender import Sender

if TYPE_CHECKING:
    from bus.client import Bus

logger = logging.getLogger("bus.producer")

#: How long the end of the process waits for what is still buffered. Seconds.
EXIT_SECONDS = 10.0


class Producer:
    """A buffered publisher. Safe across threads and forks. Close it, or use it in a `with` block."""

    default_bus: ClassVar[Callable[[], Bus]]
    """Finds the bus of a producer that is given none. Set by `bus.default`, a floor above."""

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
        """Open no connection yet.

        `bus`: None is the default bus. `linger`: seconds that a message waits for others to share its write.
        `batch_messages`, `batch_bytes`: the most in one batch; batches that have piled up share a write.
        `buffer_messages`, `buffer_bytes`: the most on its way; then `send` waits (`on_full="block"`) or
        raises BufferFull ("raise"). `delivery_timeout`: seconds after which a message fails that could not be
        written. Raises ConfigurationError.
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
        self._limits = Limits(
            linger=linger,
            batch_messages=batch_messages,
            batch_bytes=batch_bytes,
            buffer_messages=buffer_messages,
            buffer_bytes=buffer_bytes,
            blocks=on_full == "block",
        )
        self._delivery_timeout = delivery_timeout
        self._begin()
        _producers.add(self)

    def _begin(self) -> None:
        """Start with nothing buffered: in a new producer, and in a child after a fork."""
        self._buffer = Buffer(self._limits, on_cut=self._cut, wake=self._wake)
        self._turn = 0
        self._packers: dict[str, Packer] = {}
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
        """Hand in one message and return the future of its receipt. Arguments as of `bus.publish`.

        Messages without key and message_id stay with one partition for a batch, then go to the next. Raises
        InvalidMessage, UnknownTopic, ProducerClosed, BufferFull, and BusUnavailable if the topic is not known
        yet and Redis cannot be asked. The future holds whatever becomes of the message later.
        """
        packer = self._packers.get(topic) or self._look_up(topic)
        if headers is None and message_id is None and delay is None and at is None:
            # The hot path: with the lock about 1 µs besides packing.
            message = packer.pack(value, key, self._turn)
            buffer = self._buffer
            with buffer.lock:
                batch = buffer.open
                index = len(batch.messages)
                size = batch.size + len(message[1])
                if index == 0 or size > batch.most_bytes:
                    batch, index, size = buffer.begin(len(message[1])), 0, len(message[1])
                batch.messages.append(message)
                batch.size = size
                full = index + 1 == batch.most
                if full:
                    buffer.cut()
            if full:
                time.sleep(0)  # lets the sender have Python's lock now: see Buffer
            return PublishFuture(batch, index)
        message = packer.pack_any(value, PublishOptions(key, headers, message_id, delay, at), self._turn)
        with self._buffer.lock:
            batch = self._buffer.open
            if not batch or batch.size + len(message[1]) > batch.most_bytes:
                batch = self._buffer.begin(len(message[1]))
            batch.messages.append(message)
            batch.size += len(message[1])
            if message_id is not None:
                batch.resendable.add(len(batch) - 1)
            made = PublishFuture(batch, len(batch) - 1)
            if len(batch) == batch.most:
                self._buffer.cut()
        return made

    def _look_up(self, topic: str) -> Packer:
        """Return the packer by the known spec, so that no slow or absent Redis keeps `send` waiting.

        The sender asks for a newer spec. Only a topic's first message waits for Redis.
        """
        publisher = self._bus.publisher
        packer = self._packers[topic] = publisher.known_packer(topic) or publisher.packer(topic)
        return packer

    @property
    def _bus(self) -> Bus:
        if self._given is not None:
            return self._given
        return Producer.default_bus()

    def _cut(self, batch: Batch) -> None:
        """Close a batch: keyless messages go on to the next partition, and specs are looked at anew."""
        batch.topics = list(self._packers)
        self._packers.clear()
        self._turn += 1

    def _wake(self) -> None:
        """Wake the sender: the buffer has something to send. Called with the buffer's lock."""
        if self._sender is None:
            bus = self._bus
            sender = Sender(
                bus.client,
                bus.publisher,
                self._buffer,
                delivery_timeout=self._delivery_timeout,
                window=bus.settings.dedupe_window,
            )
            sender.start()
            self._sender = self._buffer.thread = sender

    # ------------------------------------------------------------------ the end

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when something has left the buffer, in the producer's thread; at once if it is
        empty.
        """
        self._buffer.when_room(callback)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything handed in so far is stored or has failed, at most `timeout` seconds.

        Raises TimeoutError. Otherwise raises the first error since the last flush of a message whose future
        nobody asked, with a note on how many there were.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for batch in self._buffer.everything():
            batch.wait_all(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self._raise_unasked()

    def close(self, timeout: float | None = None) -> None:
        """Flush and end, after at most `timeout` seconds (None: as long as delivery_timeout lets it).

        What is not stored by then fails: with BusUnavailable if it was surely not written, otherwise with
        PublishUncertain. Raises what flush raises. You may call it again.
        """
        self._buffer.close(timeout)
        sender = self._sender
        if sender is not None and sender is not threading.current_thread():
            patience = self._bus.settings.timeout + 1
            sender.join(None if timeout is None else timeout + patience)
        _producers.discard(self)
        if left := self._buffer.abandon("The producer was closed."):
            logger.error("The producer was closed with %s messages that were not stored.", f"{left:,}")
            raise TimeoutError("The producer was closed before all of its messages were stored.")
        self._raise_unasked()

    def _raise_unasked(self) -> None:
        if errors := self._buffer.unasked():
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
        """Forget the buffer in a forked child: its parent sends that."""
        closed = self._buffer.closed
        self._begin()
        self._buffer.closed = closed


_producers: weakref.WeakSet[Producer] = weakref.WeakSet()


def _forget_parent() -> None:
    future.after_fork()
    for producer in list(_producers):
        producer._after_fork()


def _flush_at_exit() -> None:
    ends = time.monotonic() + EXIT_SECONDS
    for producer in list(_producers):
        try:
            producer.close(max(0.0, ends - time.monotonic()))
        except Exception as error:
            logger.error("At the end of the process messages were not published: %s", error)


os.register_at_fork(after_in_child=_forget_parent)
atexit.register(_flush_at_exit)
