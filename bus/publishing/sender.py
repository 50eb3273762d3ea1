"""The thread of a producer: writes batches in their order, two in flight, and sends again what may go again.

Two kinds may go again without a second copy: what the server refused (it wrote nothing), and what has a
message_id. Order is kept per partition. If something of a partition was stored after a refused message of it,
that message gets its error: sent again, it would stand behind a newer one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from bus.errors import BusError, BusFull, BusUnavailable, ReplyLost, ServerError, UnknownTopic
from bus.publishing.future import PENDING, Batch
from bus.publishing.packer import Place
from bus.publishing.publisher import Publisher
from bus.publishing.waves import uncertain, vanished
from bus.safety.complaints import Complaints
from bus.streams.commands import is_noscript
from bus.streams.connect import Client, error_of, is_demoted
from bus.streams.wire import Link
from bus.values import RetryPolicy

logger = logging.getLogger("bus.producer")
complaints = Complaints(logger)
#: Failed messages, told of once a second.
failed_messages = Complaints(logger, seconds=1.0)

#: Writes under way at once: the server works on one while the next is packed.
_FLIGHTS = 2
#: The waits while nothing can be written, each twice as long as the one before.
_BACKOFF = RetryPolicy(delay=0.05, max_delay=1.0, jitter=0.5)


class Queue(Protocol):
    """The source of the sender's batches, which also hears what became of them."""

    def take(self, *, wait: bool) -> list[Batch]:
        """Return the next batches that are due; without any: nothing, or wait. Nothing then means the end."""

    def landed(self, batch: Batch, failed: list[tuple[int, Exception]]) -> None:
        """Hear that nothing of this batch is on its way any more."""

    def pause(self, seconds: float) -> bool:
        """Wait for so many seconds; False if there is no time left at all."""

    def abandon(self, reason: str) -> int:
        """Send nothing more; fail all that is there, and return how many messages."""


class Flight:
    """The content of one write: whole batches, or what is left of some."""

    __slots__ = ("messages", "whole")

    def __init__(self, whole: list[Batch], messages: list[tuple[Batch, int]] | None = None) -> None:
        self.whole = whole
        self.messages = messages
        """The single messages, if they are not all of their batches."""

    def all_messages(self) -> list[tuple[Batch, int]]:
        if self.messages is not None:
            return self.messages
        return [(batch, index) for batch in self.whole for index in range(len(batch))]

    def __len__(self) -> int:
        return sum(map(len, self.whole)) if self.messages is None else len(self.messages)

    def write(self) -> tuple[bytes, int]:
        """Return the bytes, and how many messages they are."""
        if self.messages is None:
            packed = [packed for batch in self.whole for _, packed in batch.messages]
        else:
            packed = [batch.messages[index][1] for batch, index in self.messages]
        return b"".join(packed), len(packed)

    @classmethod
    def of(cls, messages: list[tuple[Batch, int]]) -> Flight:
        """Make a flight of single messages, in their order."""
        return cls(list({id(batch): batch for batch, _ in messages}.values()), messages)


class _Mended(UnknownTopic):
    """A stream had vanished, or the server did not know a script. It does now."""

    def __init__(self, text: str) -> None:
        BusError.__init__(self, text)


class Sender(threading.Thread):
    """Sends what its queue gives until the queue ends."""

    def __init__(
        self,
        client: Client,
        publisher: Publisher,
        queue: Queue,
        *,
        delivery_timeout: float,
        window: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`delivery_timeout`: seconds after which a message fails that could not be written.
        `window`: seconds for which a message_id is known."""
        super().__init__(name="jitney-producer", daemon=True)
        self._client = client
        self._publisher = publisher
        self._queue = queue
        self._delivery_timeout = delivery_timeout
        self._window = window
        self._clock = clock
        self._link: Link | None = None
        self._flights: deque[Flight] = deque()
        self._again: deque[Flight] = deque()
        """Flights that must be sent before anything new."""
        self._trouble: BusError | None = None
        """The error of the last write, if nothing could be written."""
        self._troubles = 0

    def run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:
            # Whoever waits for a receipt must not wait for ever, nor must anybody hand in more.
            logger.exception("The thread of a producer broke.")
            self._queue.abandon(f"The producer broke: {error!r}")
        finally:
            self._close_link()

    def _step(self) -> bool:
        """Send the next flight or land the oldest; False at the end."""
        if self._again:
            # One at a time: what comes after it must not overtake what is refused once more.
            if not self._flights:
                self._send(self._again.popleft())
            if self._flights:
                self._land()
            return True
        flying = len(self._flights)
        batches = self._queue.take(wait=not flying) if flying < _FLIGHTS else []
        if batches:
            self._send(Flight(batches))
        elif flying:
            self._land()
        return bool(batches) or flying > 0

    # ------------------------------------------------------------------ the way out

    def _send(self, flight: Flight) -> None:
        flight = self._without_hopeless(flight)
        if not flight:
            return
        try:
            link = self._connect()
        except BusError as error:
            self._again.appendleft(flight)
            self._back_off(error)
            return
        self._publisher.refresh({topic for batch in flight.whole for topic in batch.topics})
        now = self._clock()
        for batch in flight.whole:
            batch.sent = batch.sent or now
        self._flights.append(flight)
        try:
            link.send(*flight.write())
        except BusUnavailable as error:
            self._lost(error, [])

    def _without_hopeless(self, flight: Flight) -> Flight:
        """Fail what is too old, and what may be stored under an id that the server forgets soon."""
        trouble = self._trouble
        if trouble is None:
            return flight
        messages = flight.all_messages()
        hopeless = {each for each in messages if self._is_hopeless(*each)}
        if not hopeless:
            return flight
        failed = [each for each in messages if each in hopeless]
        self._judge(failed, [_final(*each, trouble) for each in failed])
        return Flight.of([each for each in messages if each not in hopeless])

    def _is_hopeless(self, batch: Batch, index: int) -> bool:
        return self._is_late(batch) or (index in batch.uncertain and not self._may_resend(batch))

    def _connect(self) -> Link:
        # Where something is under way the link is open: what breaks it clears the flights.
        if self._link is None or (not self._flights and self._link.stale()):
            self._close_link()
            self._link = self._new_link()
        return self._link

    def _new_link(self) -> Link:
        link = self._client.endpoint.connect()
        try:
            self._publisher.load_scripts(link)
        except BusError as error:
            if link.closed:
                raise
            # Not allowed, or not now. Plain messages need none; others are refused, and told why.
            complaints.trouble(error, "The scripts of a producer are not loaded: %s", error)
        return link

    def _close_link(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    # ------------------------------------------------------------------ the way back

    def _land(self) -> None:
        """Read the replies to the oldest flight."""
        flight, link = self._flights[0], self._link
        assert link is not None
        try:
            replies = link.receive_many(len(flight))
        except BusUnavailable as error:
            self._lost(error, list(getattr(error, "replies", ())))
            return
        if flight.messages is not None or not _all_stored(replies):
            self._sort_out(replies)
            return
        self._flights.popleft()
        self._trouble, self._troubles = None, 0
        begin = 0
        for batch in flight.whole:
            end = begin + len(batch)
            batch.land(replies[begin:end])
            self._queue.landed(batch, [])
            batch.tell()
            begin = end

    def _lost(self, error: BusUnavailable, replies: list[Any]) -> None:
        """Sort out what is under way: the connection broke after these replies."""
        self._close_link()
        self._sort(replies, error)

    def _sort_out(self, replies: list[Any]) -> None:
        """Read the replies to all that is under way: something was refused, or is sent again."""
        link = self._link
        assert link is not None
        under_way = sum(map(len, self._flights))
        try:
            replies = replies + link.receive_many(under_way - len(replies))
        except BusUnavailable as error:
            self._lost(error, replies + list(getattr(error, "replies", ())))
            return
        self._sort(replies, None)

    def _sort(self, replies: list[Any], lost: BusUnavailable | None) -> None:
        """Divide what is under way: settled, or sent again. `lost`: why there are no more replies."""
        messages = [each for flight in self._flights for each in flight.all_messages()]
        self._flights.clear()
        replies = replies + [PENDING] * (len(messages) - len(replies))
        verdicts: list[Any] = []
        again: list[tuple[Batch, int]] = []
        refusal: BusError | None = None
        closed: set[Place] = set()
        mended: dict[Place, BusError | None] = {}
        # From the last to the first: was something of the same partition stored after it, or may have been?
        for (batch, index), reply in zip(reversed(messages), reversed(replies), strict=True):
            place = batch.place(index)
            verdict: Any = reply
            error: BusError | None = lost
            if reply is PENDING:
                batch.uncertain.add(index)
                if not (index in batch.resendable and self._may_resend(batch)):
                    verdict = _final(batch, index, lost)
                closed.add(place)
            elif reply is None or isinstance(reply, ServerError):
                error = self._refusal(place, reply, mended)
                if isinstance(error, BusFull):
                    batch.uncertain.discard(index)  # the script has looked: the id is not known
                passing = isinstance(error, BusFull | BusUnavailable | _Mended)
                again_too = passing and place not in closed and not self._is_late(batch)
                verdict = PENDING if again_too else _final(batch, index, error)
            else:
                closed.add(place)
            verdicts.append(verdict)
            if verdict is PENDING:
                refusal = error
                again.append((batch, index))
        self._judge(messages, verdicts[::-1])
        if any(map(is_demoted, replies)):
            self._close_link()
        if refusal is None:
            self._trouble, self._troubles = None, 0
        else:
            self._again.appendleft(Flight.of(again[::-1]))
            self._back_off(refusal)

    def _may_resend(self, batch: Batch) -> bool:
        """Whether the server surely still knows the message_ids of a batch."""
        sent_for = 0.0 if batch.sent is None else self._clock() - batch.sent
        return sent_for < self._window / 2 and not self._is_late(batch)

    def _refusal(self, place: Place, reply: Any, mended: dict[Place, BusError | None]) -> BusError:
        """Return the error of a refused message, after trying to mend its cause: once for each partition."""
        if reply is not None and not is_noscript(reply):
            return error_of(reply)
        if place not in mended:
            mended[place] = self._mend(place, reply)
        return mended[place] or _Mended(str(vanished(place[0])) if reply is None else str(reply))

    def _mend(self, place: Place, reply: Any) -> BusError | None:
        try:
            self._publisher.mend(*place, reply)
        except BusError as error:
            return error
        except Exception as error:  # such as a spec that a newer Jitney wrote
            return BusError(f"{place[0]}/{place[1]} cannot be mended: {error!r}")
        return None

    def _is_late(self, batch: Batch) -> bool:
        return self._clock() - batch.born >= self._delivery_timeout

    # ------------------------------------------------------------------ what becomes of messages

    def _judge(self, messages: list[tuple[Batch, int]], verdicts: Sequence[Any]) -> None:
        """Give each message that has an outcome its outcome."""
        by_batch: dict[int, tuple[Batch, dict[int, Any]]] = {}
        for (batch, index), verdict in zip(messages, verdicts, strict=True):
            if verdict is not PENDING:
                by_batch.setdefault(id(batch), (batch, {}))[1][index] = verdict
        for batch, outcomes in by_batch.values():
            _complain(batch, outcomes)
            batch.settle(outcomes)
            if batch.is_done():
                self._queue.landed(batch, _failures(batch))
            batch.tell()

    def _back_off(self, error: BusError) -> None:
        complaints.say(
            (id(self), type(error)), "The producer cannot write for now and goes on trying: %s", error
        )
        self._trouble = error
        self._troubles += 1
        if not self._queue.pause(_BACKOFF.delay_after(self._troubles)):
            self._give_up(error)

    def _give_up(self, error: BusError) -> None:
        """Fail everything: the producer is being closed and its time is over."""
        for flight in self._again:
            messages = flight.all_messages()
            self._judge(messages, [_final(*each, error) for each in messages])
        self._again.clear()


def _all_stored(replies: list[Any]) -> bool:
    return set(map(type, replies)) <= {bytes, list}


def _final(batch: Batch, index: int, error: BusError | None) -> BusError:
    """Return the error of a message that is given up. If it was sent, it may be stored, and nobody knows."""
    if index in batch.uncertain or error is None:
        return uncertain(batch.place(index)[0], error or ReplyLost("no reply"))
    return error


def _failures(batch: Batch) -> list[tuple[int, Exception]]:
    return [(index, each) for index, each in enumerate(batch.outcomes or ()) if isinstance(each, Exception)]


def _complain(batch: Batch, outcomes: dict[int, Any]) -> None:
    """Log errors, one line a second for each topic and kind, so that nothing is dropped in silence."""
    failed: dict[tuple[str, str], list[Exception]] = {}
    for index, each in outcomes.items():
        if isinstance(each, Exception):
            failed.setdefault((batch.place(index)[0], type(each).__name__), []).append(each)
    for (topic, kind), errors in failed.items():
        failed_messages.say(
            (topic, kind),
            "%s message(s) to %s: %s: %s",
            f"{len(errors):,}",
            topic,
            kind,
            errors[-1],
            level=logging.ERROR,
            of=len(errors),
        )
