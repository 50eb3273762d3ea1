"""The futures that `Producer.send` returns: receipts that are on their way.

The futures of one write share its `Bundle`, which gets all replies at once; a receipt is made only when
somebody asks for it. A concurrent.futures.Future brings a lock and a condition of its own for each message,
which costs more than publishing the message.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from bus.errors import BusError
from bus.publishing.draft import receipt_of
from bus.publishing.packer import Packed, PartitionRef
from bus.values import Receipt

if TYPE_CHECKING:
    import asyncio

PENDING = object()
"""Stands for the outcome of a message that is still on its way."""

#: Orders the creation of events; taken only where somebody waits.
_events = threading.Lock()


class Bundle:
    """Messages that are sent together, and what became of them."""

    __slots__ = ("_refs", "asked", "born", "callbacks", "event", "messages", "most",
                 "most_bytes", "on_wait", "outcomes", "pid", "resendable", "sent", "size",
                 "topics", "uncertain")  # fmt: skip

    def __init__(self, on_wait: Callable[[Bundle], None]) -> None:
        """`on_wait` is called with the bundle when somebody waits for a message of it."""
        self.messages: list[Packed] = []
        """The packed messages, kept until all have an outcome."""
        self._refs: list[PartitionRef] = []
        self.resendable: set[int] = set()
        """The messages with a message_id: sending them twice stores them once."""
        self.topics: list[str] = []
        """The topics whose specs are to be read again before it is sent."""
        self.uncertain: set[int] = set()
        """The messages that were sent once and may be stored, whatever a second attempt says."""
        self.size = 0
        """Bytes of its messages."""
        self.most = 0
        """The most messages that it may hold."""
        self.most_bytes = 0
        self.born = time.monotonic()
        self.sent: float | None = None
        """When it was first sent, by the monotonic clock; None: not yet."""
        self.outcomes: list[Any] | None = None
        """For each message its reply, its error, or PENDING; None while all are pending."""
        self.asked: set[int] = set()
        """The messages whose error somebody was told."""
        self.callbacks: dict[int, list[Callable[[], None]]] = {}
        self.event: threading.Event | None = None
        self.on_wait = on_wait
        self.pid = os.getpid()

    def __len__(self) -> int:
        return len(self.messages) or len(self._refs)

    def ref(self, index: int) -> PartitionRef:
        """Return the partition of a message."""
        messages = self.messages  # read once: the sender lets go of it meanwhile
        return messages[index][0] if messages else self._refs[index]

    def outcome(self, index: int) -> Any:
        """Return the reply to a message, its error, or PENDING."""
        return PENDING if self.outcomes is None else self.outcomes[index]

    def land(self, outcomes: list[Any]) -> None:
        """Record all outcomes, in order. `tell` wakes those who wait."""
        self._let_go()
        self.outcomes = outcomes

    def settle(self, outcomes: dict[int, Any]) -> None:
        """Record some outcomes, by index. `tell` wakes those who wait."""
        if self.outcomes is None:
            self.outcomes = [PENDING] * len(self)
        for index, outcome in outcomes.items():
            self.outcomes[index] = outcome
        if self.is_done():
            self._let_go()

    def _let_go(self) -> None:
        """Free the bytes: a future that somebody keeps needs only the partition."""
        if self.messages:
            self._refs = [ref for ref, _ in self.messages]
            self.messages = []

    def is_done(self) -> bool:
        """Return whether all messages have an outcome."""
        return self.outcomes is not None and PENDING not in self.outcomes

    def hurry(self) -> None:
        """Send it without lingering: somebody waits for it."""
        if not self.is_done():
            self._check_process()
            self.on_wait(self)

    def wait(self, index: int, timeout: float | None) -> Any:
        """Wait for the outcome of a message and return it. `timeout`: seconds. Raises TimeoutError."""
        self._wait(lambda: self.outcome(index) is not PENDING, timeout)
        self.asked.add(index)
        return self.outcome(index)

    def wait_all(self, timeout: float | None) -> None:
        """Wait until all messages have an outcome. `timeout`: seconds. Raises TimeoutError."""
        self._wait(self.is_done, timeout)

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> None:
        if condition():
            return
        self._check_process()
        self.on_wait(self)
        deadline = None if timeout is None else time.monotonic() + timeout
        while not condition():
            with _events:
                if self.event is None:
                    self.event = threading.Event()
                event = self.event
            if condition():  # it came true before the event was there
                return
            left = None if deadline is None else deadline - time.monotonic()
            if (left is not None and left <= 0) or not event.wait(left):
                raise TimeoutError("the message is still on its way")

    def call_back(self, index: int, callback: Callable[[], None]) -> None:
        """Call `callback` when a message has an outcome, in the producer's thread; at once if it has."""
        self.asked.add(index)
        if self.outcome(index) is PENDING:
            self._check_process()
        with _events:
            if self.outcome(index) is PENDING:
                self.callbacks.setdefault(index, []).append(callback)
                return
        callback()

    def tell(self) -> None:
        """Wake those who wait for outcomes that are known now, and call their callbacks."""
        with _events:
            event, self.event = self.event, None
            decided = [index for index in self.callbacks if self.outcome(index) is not PENDING]
            callbacks = [callback for index in decided for callback in self.callbacks.pop(index)]
        if event is not None:
            event.set()
        for callback in callbacks:
            callback()

    def _check_process(self) -> None:
        if self.pid != os.getpid():
            raise BusError(
                "This message was sent before the process forked, so its receipt comes in the parent process."
            )


class PublishFuture:
    """The future receipt of one message. `Producer.send` makes it."""

    __slots__ = ("_bundle", "_index")

    def __init__(self, bundle: Bundle, index: int) -> None:
        self._bundle = bundle
        self._index = index

    def result(self, timeout: float | None = None) -> Receipt:
        """Wait for the receipt, at most `timeout` seconds, and return it. The message does not linger.

        Raises what `bus.publish` raises, TimeoutError, and BusError in a process that was forked meanwhile.
        """
        outcome = self._bundle.wait(self._index, timeout)
        if isinstance(outcome, Exception):
            raise outcome.with_traceback(None)  # others may have the same one
        return receipt_of(*self._bundle.ref(self._index), outcome)

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Wait, at most `timeout` seconds, and return the error; None if the message is stored.

        Raises TimeoutError, and BusError in a process that was forked meanwhile.
        """
        outcome = self._bundle.wait(self._index, timeout)
        return outcome if isinstance(outcome, Exception) else None

    def done(self) -> bool:
        """Return whether the message is stored, or has failed for good."""
        return self._bundle.outcome(self._index) is not PENDING

    def add_done_callback(self, callback: Callable[[PublishFuture], object]) -> None:
        """Call `callback(future)` when the message is stored or has failed; at once if it is or has.

        The producer's thread calls it and waits for it, so it must be short. An exception in it is logged.
        """
        self._bundle.call_back(self._index, lambda: _call(callback, self))

    def hurry(self) -> None:
        """Send this message without lingering for others."""
        self._bundle.hurry()

    def __await__(self) -> Generator[Any, None, Receipt]:
        """Wait for the receipt in any event loop of asyncio, without blocking it: `await future`."""
        import asyncio

        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        self.add_done_callback(lambda _: call_in_loop(loop, wake))
        self.hurry()
        yield from waiter.__await__()
        return self.result(0)

    def __repr__(self) -> str:
        topic, partition = self._bundle.ref(self._index)
        return f"<PublishFuture {topic}/{partition} {'done' if self.done() else 'on its way'}>"


def after_fork() -> None:
    """Make a new lock in a forked child: the old one may be held by a thread that is not there."""
    global _events
    _events = threading.Lock()


def _call(callback: Callable[[PublishFuture], object], future: PublishFuture) -> None:
    try:
        callback(future)
    except BaseException:  # also SystemExit: it would end the thread that all others wait for
        import logging

        logging.getLogger("bus.producer").exception("A callback of a published message failed.")


def call_in_loop(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    """Have an event loop call `work` soon, from any thread; do nothing if the loop is closed."""
    try:
        loop.call_soon_threadsafe(work)
    except RuntimeError:
        return  # the loop was closed meanwhile: nobody waits any more
