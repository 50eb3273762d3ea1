"""The buffered producer: many threads hand in messages, one thread of its own writes them.

    send() → open bundle ──full, old, or waited for──▶ queue ──▶ Sender ──▶ Redis
       ▲                                                          │
       └── PublishFuture ◀───── replies, errors ──────────────────┘

All bundles go over one connection in the order in which they were begun, so the order of each partition is
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
from bus.publishing.future import Bundle, PublishFuture
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
        """Make a producer. It opens no connection yet.

        `bus`: None is the default bus. `linger`: seconds that a message waits for others to share its write.
        `batch_messages`, `batch_bytes`: the most that is sent together; what has piled up shares a write.
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
        self._rota = 0
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
        """Hand in one message and return the future of its receipt. The arguments are those of `bus.publish`.

        Messages without key and message_id that are sent together go to one partition, the next ones to the
        next. Raises InvalidMessage, UnknownTopic, ProducerClosed, BufferFull, and BusUnavailable if this is
        the topic's first message and Redis cannot be asked. What happens later, the future tells.
        """
        packer = self._packers.get(topic) or self._look_up(topic)
        if headers is None and message_id is None and delay is None and at is None:
            # The hot path: with the lock about 1 µs besides packing.
            message = packer.pack(value, key, self._rota)
            buffer = self._buffer
            with buffer.lock:
                bundle = buffer.open
                index = len(bundle.messages)
                size = bundle.size + len(message[1])
                if index == 0 or size > bundle.most_bytes:
                    bundle, index, size = buffer.begin(len(message[1])), 0, len(message[1])
                bundle.messages.append(message)
                bundle.size = size
                full = index + 1 == bundle.most
                if full:
                    buffer.cut()
            if full:
                time.sleep(0)  # lets the sender have Python's lock now: see Buffer
            return PublishFuture(bundle, index)
        message = packer.pack_any(value, PublishOptions(key, headers, message_id, delay, at), self._rota)
        with self._buffer.lock:
            bundle = self._buffer.open
            if not bundle or bundle.size + len(message[1]) > bundle.most_bytes:
                bundle = self._buffer.begin(len(message[1]))
            bundle.messages.append(message)
            bundle.size += len(message[1])
            if message_id is not None:
                bundle.resendable.add(len(bundle) - 1)
            made = PublishFuture(bundle, len(bundle) - 1)
            if len(bundle) == bundle.most:
                self._buffer.cut()
        return made

    def _look_up(self, topic: str) -> Packer:
        """Return the packer by the spec that was read last, so that `send` does not wait for Redis.

        The sender reads a newer spec. Only a topic's first message waits for Redis.
        """
        publisher = self._bus.publisher
        packer = self._packers[topic] = publisher.known_packer(topic) or publisher.packer(topic)
        return packer

    @property
    def _bus(self) -> Bus:
        if self._given is not None:
            return self._given
        return Producer.default_bus()

    def _cut(self, bundle: Bundle) -> None:
        """Complete a bundle: keyless messages go on to the next partition, and specs are read again."""
        bundle.topics = list(self._packers)
        self._packers.clear()
        self._rota += 1

    def _wake(self) -> None:
        """Start the sender when there is something to send. Called with the buffer's lock."""
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
        """Call `callback` once when messages have left the buffer; at once if it is empty.

        The producer's thread calls it.
        """
        self._buffer.when_room(callback)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all messages handed in so far are stored or have failed, at most `timeout` seconds.

        Raises TimeoutError, or the first error since the last flush of a message whose future nobody has
        asked, with a note on how many there are.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for bundle in self._buffer.everything():
            bundle.wait_all(None if deadline is None else max(0.0, deadline - time.monotonic()))
        self._raise_unasked()

    def close(self, timeout: float | None = None) -> None:
        """Flush and end, after at most `timeout` seconds (None: as long as `delivery_timeout` allows).

        Messages that are not stored by then fail: with BusUnavailable if they were not written, with
        PublishUncertain if nobody knows. Raises what `flush` raises. You may call it again.
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
        """Begin with an empty buffer in a forked child: the parent sends what is in the old one."""
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
