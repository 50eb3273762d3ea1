"""What `Producer.send` returns: a receipt that is on its way.

The futures of one write share its `Batch`, which gets all replies at once; a receipt is made only when
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
from bus.publishing.packer import Packed, Place
from bus.values import Receipt

if TYPE_CHECKING:
    import asyncio

PENDING = object()
"""Stands for the outcome of a message that is still on its way."""

#: Orders the creation of events; taken only where somebody waits.
_events = threading.Lock()


class Batch:
    """The messages of one write, and what became of them."""

    __slots__ = ("_places", "asked", "born", "callbacks", "event", "messages", "most",
                 "most_bytes", "on_wait", "outcomes", "pid", "resendable", "sent", "size",
                 "topics", "uncertain")  # fmt: skip

    def __init__(self, on_wait: Callable[[Batch], None]) -> None:
        """`on_wait` is called when somebody waits for a message of this batch: it should not linger."""
        self.messages: list[Packed] = []
        """The messages as bytes, kept until it is done."""
        self._places: list[Place] = []
        self.resendable: set[int] = set()
        """The messages with a message_id: sending them twice stores them once."""
        self.topics: list[str] = []
        self.uncertain: set[int] = set()
        """The messages that were sent and may be stored, and are sent again: their fate is not known."""
        self.size = 0
        self.most = 0
        """The most messages that it may hold; `most_bytes`: the most bytes."""
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
        return len(self.messages) or len(self._places)

    def place(self, index: int) -> Place:
        messages = self.messages  # read once: the sender lets go of it meanwhile
        return messages[index][0] if messages else self._places[index]

    def outcome(self, index: int) -> Any:
        return PENDING if self.outcomes is None else self.outcomes[index]

    def land(self, outcomes: list[Any]) -> None:
        """Take in all outcomes, in order. Whoever waits hears of them by `tell`."""
        self._let_go()
        self.outcomes = outcomes

    def settle(self, outcomes: dict[int, Any]) -> None:
        """Take in some outcomes. Whoever waits hears of them by `tell`."""
        if self.outcomes is None:
            self.outcomes = [PENDING] * len(self)
        for index, outcome in outcomes.items():
            self.outcomes[index] = outcome
        if self.is_done():
            self._let_go()

    def _let_go(self) -> None:
        """Free the bytes: whoever keeps a future needs only the place."""
        if self.messages:
            self._places = [place for place, _ in self.messages]
            self.messages = []

    def is_done(self) -> bool:
        """Whether nothing of it is on its way any more."""
        return self.outcomes is not None and PENDING not in self.outcomes

    def hurry(self) -> None:
        """Do not let it linger: somebody waits."""
        if not self.is_done():
            self._check_process()
            self.on_wait(self)

    def wait(self, index: int, timeout: float | None) -> Any:
        """Wait for the outcome of one message and return it. Raises TimeoutError."""
        self._wait(lambda: self.outcome(index) is not PENDING, timeout)
        self.asked.add(index)
        return self.outcome(index)

    def wait_all(self, timeout: float | None) -> None:
        """Wait until nothing of it is on its way any more. Raises TimeoutError."""
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
        """Call `callback` when the outcome is known, in the producer's thread; at once if it is."""
        self.asked.add(index)
        if self.outcome(index) is PENDING:
            self._check_process()
        with _events:
            if self.outcome(index) is PENDING:
                self.callbacks.setdefault(index, []).append(callback)
                return
        callback()

    def tell(self) -> None:
        """Tell those who wait for what is known now."""
        with _events:
            event, self.event = self.event, None
            known = [index for index in self.callbacks if self.outcome(index) is not PENDING]
            due = [each for index in known for each in self.callbacks.pop(index)]
        if event is not None:
            event.set()
        for callback in due:
            callback()

    def _check_process(self) -> None:
        if self.pid != os.getpid():
            raise BusError(
                "This message was sent before the process forked, so its receipt comes in the parent process."
            )


class PublishFuture:
    """The receipt of one message, once it is there. Made by `Producer.send`."""

    __slots__ = ("_batch", "_index")

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index

    def result(self, timeout: float | None = None) -> Receipt:
        """Wait for the receipt and return it, after at most `timeout` seconds. The message does not linger.

        Raises what `publish` raises, TimeoutError, and BusError in a process that was forked meanwhile.
        """
        outcome = self._batch.wait(self._index, timeout)
        if isinstance(outcome, Exception):
            raise outcome.with_traceback(None)  # others may have the same one
        return receipt_of(*self._batch.place(self._index), outcome)

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Wait and return the error; None if the message is stored. Raises TimeoutError."""
        outcome = self._batch.wait(self._index, timeout)
        return outcome if isinstance(outcome, Exception) else None

    def done(self) -> bool:
        """Whether the message is stored, or has failed for good."""
        return self._batch.outcome(self._index) is not PENDING

    def add_done_callback(self, callback: Callable[[PublishFuture], object]) -> None:
        """Call `callback(future)` when it is done, in the producer's thread; at once if it is done.

        The callback must be short: the producer waits for it. An exception in it is logged.
        """
        self._batch.call_back(self._index, lambda: _call(callback, self))

    def hurry(self) -> None:
        """Do not let this message linger for others: somebody waits for it."""
        self._batch.hurry()

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
        topic, partition = self._batch.place(self._index)
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
    """Have an event loop call something soon, from any thread."""
    try:
        loop.call_soon_threadsafe(work)
    except RuntimeError:
        return  # the loop was closed meanwhile: nobody waits any more
