"""The thread of a producer: writes bundles in their order, two in flight, and sends again what may go again.

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
from bus.publishing.future import PENDING, Bundle
from bus.publishing.packer import PartitionRef
from bus.publishing.publisher import Publisher
from bus.publishing.waves import stream_gone, uncertain
from bus.safety.complaints import Complaints, write
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
    """The buffer, as the sender sees it: it gives bundles and hears what became of them."""

    def take(self, *, wait: bool) -> list[Bundle]:
        """Return the next bundles that are due. Where none is: wait, or return nothing."""

    def landed(self, bundle: Bundle, failed: list[tuple[int, Exception]]) -> None:
        """Hear that all messages of a bundle have an outcome."""

    def pause(self, seconds: float) -> bool:
        """Wait for so many seconds; False if the time of `close` is over."""

    def abandon(self, reason: str) -> int:
        """Fail all messages that are there, and return how many."""


class Flight:
    """The content of one write: whole bundles, or single messages of some."""

    __slots__ = ("messages", "whole")

    def __init__(self, whole: list[Bundle], messages: list[tuple[Bundle, int]] | None = None) -> None:
        self.whole = whole
        self.messages = messages
        """The single messages, if they are not all of their bundles."""

    def all_messages(self) -> list[tuple[Bundle, int]]:
        if self.messages is not None:
            return self.messages
        return [(bundle, index) for bundle in self.whole for index in range(len(bundle))]

    def __len__(self) -> int:
        return sum(map(len, self.whole)) if self.messages is None else len(self.messages)

    def write(self) -> tuple[bytes, int]:
        """Return the bytes to write, and how many messages they are."""
        if self.messages is None:
            packed = [packed for bundle in self.whole for _, packed in bundle.messages]
        else:
            packed = [bundle.messages[index][1] for bundle, index in self.messages]
        return b"".join(packed), len(packed)

    @classmethod
    def of(cls, messages: list[tuple[Bundle, int]]) -> Flight:
        """Make a flight of single messages, in their order."""
        return cls(list({id(bundle): bundle for bundle, _ in messages}.values()), messages)


class _Mended(UnknownTopic):
    """A stream was gone, or the server did not know a script. That is mended."""

    def __init__(self, text: str) -> None:
        BusError.__init__(self, text)


class Sender(threading.Thread):
    """Sends the bundles of its queue until the queue ends."""

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
        """Make a thread that does not run yet.

        `delivery_timeout`: seconds after which a message fails that could not be written. `window`: seconds
        for which the server knows a message_id.
        """
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
        """Why the last write failed or was refused; None if it was not."""
        self._troubles = 0
        """Writes that failed or were refused, since the last one that was not."""

    def run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:
            # Whoever waits for a receipt must not wait for ever, nor must anybody hand in more.
            write(logger, logging.ERROR, "The thread of a producer broke.", exc_info=error)
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
        bundles = self._queue.take(wait=not flying) if flying < _FLIGHTS else []
        if bundles:
            self._send(Flight(bundles))
        elif flying:
            self._land()
        return bool(bundles) or flying > 0

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
        self._publisher.refresh({topic for bundle in flight.whole for topic in bundle.topics})
        now = self._clock()
        for bundle in flight.whole:
            bundle.sent = bundle.sent or now
        self._flights.append(flight)
        try:
            link.send(*flight.write())
        except BusUnavailable as error:
            self._lost(error, [])

    def _without_hopeless(self, flight: Flight) -> Flight:
        """Fail messages that are too old, or may be stored under an id that the server forgets soon.

        Return the flight without them.
        """
        trouble = self._trouble
        if trouble is None:
            return flight
        messages = flight.all_messages()
        hopeless = {message for message in messages if self._is_hopeless(*message)}
        if not hopeless:
            return flight
        failed = [message for message in messages if message in hopeless]
        self._judge(failed, [_final(*message, trouble) for message in failed])
        return Flight.of([message for message in messages if message not in hopeless])

    def _is_hopeless(self, bundle: Bundle, index: int) -> bool:
        return self._is_late(bundle) or (index in bundle.uncertain and not self._may_resend(bundle))

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
        for bundle in flight.whole:
            end = begin + len(bundle)
            bundle.land(replies[begin:end])
            self._queue.landed(bundle, [])
            bundle.tell()
            begin = end

    def _lost(self, error: BusUnavailable, replies: list[Any]) -> None:
        """Sort what is under way: the connection broke after these replies."""
        self._close_link()
        self._sort(replies, error)

    def _sort_out(self, replies: list[Any]) -> None:
        """Read the other replies to what is under way, some of which was refused, and sort it."""
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
        """Decide for each message under way: it has an outcome, or is sent again.

        `lost`: why there are no more replies; None if there are all.
        """
        messages = [message for flight in self._flights for message in flight.all_messages()]
        self._flights.clear()
        replies = replies + [PENDING] * (len(messages) - len(replies))
        verdicts: list[Any] = []
        again: list[tuple[Bundle, int]] = []
        refusal: BusError | None = None
        closed: set[PartitionRef] = set()
        mended: dict[PartitionRef, BusError | None] = {}
        # From the last to the first: was something of the same partition stored after it, or may have been?
        for (bundle, index), reply in zip(reversed(messages), reversed(replies), strict=True):
            ref = bundle.ref(index)
            verdict: Any = reply
            error: BusError | None = lost
            if reply is PENDING:
                bundle.uncertain.add(index)
                if not (index in bundle.resendable and self._may_resend(bundle)):
                    verdict = _final(bundle, index, lost)
                closed.add(ref)
            elif reply is None or isinstance(reply, ServerError):
                error = self._refusal(ref, reply, mended)
                if isinstance(error, BusFull):
                    bundle.uncertain.discard(index)  # the script has looked: the id is not known
                passing = isinstance(error, BusFull | BusUnavailable | _Mended)
                again_too = passing and ref not in closed and not self._is_late(bundle)
                verdict = PENDING if again_too else _final(bundle, index, error)
            else:
                closed.add(ref)
            verdicts.append(verdict)
            if verdict is PENDING:
                refusal = error
                again.append((bundle, index))
        self._judge(messages, verdicts[::-1])
        if any(map(is_demoted, replies)):
            self._close_link()
        if refusal is None:
            self._trouble, self._troubles = None, 0
        else:
            self._again.appendleft(Flight.of(again[::-1]))
            self._back_off(refusal)

    def _may_resend(self, bundle: Bundle) -> bool:
        """Return whether the server surely still knows the message_ids of a bundle."""
        sent_for = 0.0 if bundle.sent is None else self._clock() - bundle.sent
        return sent_for < self._window / 2 and not self._is_late(bundle)

    def _refusal(
        self, ref: PartitionRef, reply: Any, mended: dict[PartitionRef, BusError | None]
    ) -> BusError:
        """Return the error of a refused message. Before that mend its cause, once for each partition."""
        if reply is not None and not is_noscript(reply):
            return error_of(reply)
        if ref not in mended:
            mended[ref] = self._mend(ref, reply)
        return mended[ref] or _Mended(str(stream_gone(ref[0])) if reply is None else str(reply))

    def _mend(self, ref: PartitionRef, reply: Any) -> BusError | None:
        try:
            self._publisher.mend(*ref, reply)
        except BusError as error:
            return error
        except Exception as error:  # such as a spec that a newer Jitney wrote
            return BusError(f"{ref[0]}/{ref[1]} cannot be mended: {error!r}")
        return None

    def _is_late(self, bundle: Bundle) -> bool:
        return self._clock() - bundle.born >= self._delivery_timeout

    # ------------------------------------------------------------------ what becomes of messages

    def _judge(self, messages: list[tuple[Bundle, int]], verdicts: Sequence[Any]) -> None:
        """Record the verdicts that are outcomes, and wake those who wait. PENDING is none."""
        by_bundle: dict[int, tuple[Bundle, dict[int, Any]]] = {}
        for (bundle, index), verdict in zip(messages, verdicts, strict=True):
            if verdict is not PENDING:
                by_bundle.setdefault(id(bundle), (bundle, {}))[1][index] = verdict
        for bundle, outcomes in by_bundle.values():
            _complain(bundle, outcomes)
            bundle.settle(outcomes)
            if bundle.is_done():
                self._queue.landed(bundle, _failures(bundle))
            bundle.tell()

    def _back_off(self, error: BusError) -> None:
        complaints.say(
            (id(self), type(error)), "The producer cannot write for now and goes on trying: %s", error
        )
        self._trouble = error
        self._troubles += 1
        if not self._queue.pause(_BACKOFF.delay_after(self._troubles)):
            self._give_up(error)

    def _give_up(self, error: BusError) -> None:
        """Fail all flights that wait: the time of `close` is over."""
        for flight in self._again:
            messages = flight.all_messages()
            self._judge(messages, [_final(*message, error) for message in messages])
        self._again.clear()


def _all_stored(replies: list[Any]) -> bool:
    return set(map(type, replies)) <= {bytes, list}


def _final(bundle: Bundle, index: int, error: BusError | None) -> BusError:
    """Return the error of a message that is given up: PublishUncertain if it may be stored."""
    if index in bundle.uncertain or error is None:
        return uncertain(bundle.ref(index)[0], error or ReplyLost("no reply"))
    return error


def _failures(bundle: Bundle) -> list[tuple[int, Exception]]:
    outcomes = enumerate(bundle.outcomes or ())
    return [(index, outcome) for index, outcome in outcomes if isinstance(outcome, Exception)]


def _complain(bundle: Bundle, outcomes: dict[int, Any]) -> None:
    """Log the errors among outcomes, one line a second for each topic and kind of error."""
    failed: dict[tuple[str, str], list[Exception]] = {}
    for index, outcome in outcomes.items():
        if isinstance(outcome, Exception):
            failed.setdefault((bundle.ref(index)[0], type(outcome).__name__), []).append(outcome)
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
