"""Runs the handlers of the messages that a slice has in hand, and settles in between.

The slice fetches. This looks before each message whether it may go on, and keeps what became of each in its
lane until a turn settles it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

from bus.consuming.answer import Delivery
from bus.consuming.lane import Lane
from bus.consuming.subscriptions import Subscription
from bus.consuming.turn import Turns
from bus.errors import BusUnavailable, Forbidden
from bus.format import codec
from bus.values import Message, RetryPolicy
from workers.handler_forks import handler_forks
from workers.liveness import DEAD_SECONDS
from workers.slices import failures
from workers.slices.chains import CONCURRENCY, Chains
from workers.slices.crew import Crew
from workers.slices.dispatch import Dispatcher, Failed
from workers.slices.runtime import Runtime

#: A batch is sized to this much handling, so that little is repeated when a process is killed. Seconds.
BATCH_SECONDS = 0.1
#: What is handled is settled at least this often. Seconds.
SETTLE_SECONDS = 0.2
#: Messages in one turn at most: above 100 a longer batch hardly costs less per message.
MAX_COUNT = 500
#: The first batch of a handler that nobody has timed yet.
FIRST_COUNT = 20
#: Before a message the leases are read again if they were last proven longer ago. Seconds.
PROVE_SECONDS = DEAD_SECONDS / 3
#: The waits between two tries of a slice to reach Redis again, each twice as long as the one before.
RECONNECT = RetryPolicy(delay=0.05, max_delay=1.0, jitter=0.5)
#: How long a slice goes on trying to reach Redis again before it gives up what it has not settled. Seconds.
RECONNECT_SECONDS = 60.0


class Handling:
    """The messages in hand of one slice."""

    def __init__(
        self, runtime: Runtime, turns: Turns, lanes: list[Lane], slot: int, mean: float | None
    ) -> None:
        """`lanes`: in the order of the slice's reports. `mean`: seconds of the handler so far, if known."""
        self._runtime = runtime
        self._progress = runtime.progress
        self._turns = turns
        self._slot = slot
        self._mean = mean
        self._index = {id(lane): number for number, lane in enumerate(lanes)}
        self._concurrent = self.dispatcher(lanes[0]).is_concurrent
        self._settled_at = 0.0
        self.ends = 0.0
        """When the slice should end, by the monotonic clock."""
        self.cut_short = False
        """True if the slice ends before its lanes are empty."""
        self.handled = False
        """True if at least one message was handled."""
        self.in_hand = True
        """False: the connection broke, so what was fetched is to be looked up in the pending list."""

    def on_line(self, work: Callable[[], Any]) -> Any:
        """Run a turn; when the connection breaks, connect again, prove the leases, and lose nothing.

        After a break nothing is in hand: what had been fetched is looked up in the pending list.
        """
        handler_forks.end_child()  # a process that a receiver of a signal has forked off, say
        gives_up = time.monotonic() + RECONNECT_SECONDS
        try:
            return work()
        except Forbidden:
            raise  # the connection is well, and would be refused the same again
        except BusUnavailable as error:
            broken: BusUnavailable = error
        tries = 0
        while time.monotonic() < gives_up and not self._progress.draining:
            tries += 1
            pause(RECONNECT.delay_after(tries))
            try:
                self._turns.reopen()
            except BusUnavailable as error:
                broken = error
            else:
                self.in_hand = False
                return []
        raise broken

    # ------------------------------------------------------------------ a batch

    def handle(self, delivery: Delivery) -> None:
        """Handle what a turn has brought."""
        self.in_hand = True
        for lane, messages in delivery:
            if self.cut_short or not self.in_hand:
                # Fetched and not run: without this mark nobody would look for them in the pending list.
                lane.start_recovery()
            elif self.dispatcher(lane).is_concurrent and lane.suspect is None:
                self._handle_concurrently(lane, messages)
            elif self.subscription(lane).batch is None:
                self._handle_singly(lane, messages)
            else:
                self._handle_in_batches(lane, messages)

    def _handle_singly(self, lane: Lane, messages: list[Message]) -> None:
        began = time.monotonic()
        handled = self._handle_smoothly(lane, messages) if lane.is_smooth() and not lane.lost else 0
        if handled < len(messages):
            handled += self._handle_carefully(lane, messages[handled:])
        self._learn(handled, time.monotonic() - began)

    def _handle_smoothly(self, lane: Lane, messages: list[Message]) -> int:
        """Handle messages while there is nothing to look up or to settle, and nothing fails. Returns how
        many.

        This is the hot path: what can be looked up once for all messages is.
        """
        progress, slot, before = self._progress, self._slot, len(lane.acks)
        if not lane.recovering:  # or what killed a process while it was decoded would do so for ever
            codec.decode_ahead(messages)
        begun = progress.each(slot, self._index[id(lane)], messages, self._next_look())
        failure = self.dispatcher(lane).handle_each(begun, lane)
        handled = len(lane.acks) - before
        if failure is not None:
            self.fail(lane, *failure)
            failure = None  # its traceback leads back to this frame: a circle that would keep the batch
            handled += 1
        elif handled and lane.lost:  # its last handler has asked, and is counted as running still
            progress.done(slot)
        self.handled = self.handled or handled > 0
        return handled

    def _handle_carefully(self, lane: Lane, messages: list[Message]) -> int:
        """Handle messages with a look at everything that may stop or delay each. Returns how many."""
        progress, slot, index = self._progress, self._slot, self._index[id(lane)]
        handle, handled, next_look = self.dispatcher(lane).handle, 0, -math.inf
        attempts = self.subscription(lane).retry.attempts
        for message in messages:
            if time.monotonic() > next_look or lane.lost or progress.stopping(slot):
                self.settle_between()
                if not self.may_go_on(lane):
                    lane.start_recovery()
                    break
                next_look = self._next_look()
            if lane.failing and self.held_back(lane, message):
                continue
            if lane.suspect is not None and not self._may_run_suspect(lane, message):
                if not self.in_hand or lane.lost:
                    lane.start_recovery()
                    break
                continue
            if message.attempt > attempts and self.is_used_up(lane, message):
                continue
            progress.running(slot, index, message.id.encode(), time.monotonic())
            failed = handle(message)
            if failed is None:
                lane.done(message)
                progress.done(slot)
            else:
                self.fail(lane, message, failed)
                next_look = self._next_look()
                failed = None  # as above
            handled += 1
            self.handled = True
        return handled

    def _next_look(self) -> float:
        """Return until when messages may start without a look at leases, settling and the slice's end."""
        return min(self.ends, self._turns.proved + PROVE_SECONDS, self._settled_at + SETTLE_SECONDS)

    def _handle_concurrently(self, lane: Lane, messages: list[Message]) -> None:
        crew = Crew(self, lane)
        chains = Chains(messages, lane.hash_of)
        try:
            went_on = self._runtime.runner().run(crew.work(chains))
        except BaseException:
            # SystemExit out of a handler, for example: what still runs must not go on under the next slice.
            self._runtime.close_runner()
            raise
        if crew.broken:
            self.on_line(self._turns.settle)
        if not went_on:
            lane.start_recovery()
        self._learn(crew.ended, crew.busy)

    def _handle_in_batches(self, lane: Lane, messages: list[Message]) -> None:
        size = self.subscription(lane).batch or 1
        began = time.monotonic()
        step = 1 if lane.suspect is not None else size
        for start in range(0, len(messages), step):
            batch = messages[start : start + step]
            while batch:
                self.settle_between()
                if not self.may_go_on(lane):
                    lane.start_recovery()
                    return
                batch = self._handle_batch(lane, batch)
                self.handled = True
        self.settle_between()
        self._learn(len(messages), time.monotonic() - began)

    def _handle_batch(self, lane: Lane, messages: list[Message]) -> list[Message]:
        """Call the handler once. Returns the messages that it passed over, for the next call."""
        ready = [
            message
            for message in messages
            if not (self.held_back(lane, message) or self.is_used_up(lane, message))
        ]
        if not ready:
            return []
        if lane.suspect is not None and not self._may_run_suspect(lane, ready[0]):
            if not self.in_hand or lane.lost:
                lane.start_recovery()
            return []
        index = self._index[id(lane)]
        self._mark_running(index, ready)
        failed = self.dispatcher(lane).handle_batch(ready, lane.ordering)
        if failed is None:
            # It raised, on nobody knows which message: each is delivered alone, in order.
            self._progress.stopped(self._slot)
            for message in ready:
                self.settle_between()
                if not self.may_go_on(lane):
                    lane.start_recovery()
                    break
                self._handle_batch(lane, [message])
            return []
        done = [message for message in ready if message.id not in failed]
        for message in done:
            lane.done(message)
        refused = [message for message in ready if message.id in failed]
        behind = [message for message in refused if failed[message.id].kind == "behind"]
        records = [
            (message.id.encode(), self._record(lane, message, failed[message.id]))
            for message in refused
            if message not in behind
        ]
        self._keep(lane, [message.id.encode() for message in done], records)
        for message in refused:
            if message not in behind:
                failures.tell(message, failed[message.id], self.subscription(lane))
        self.dispatcher(lane).heed_end()
        failed.clear()  # as above
        return behind

    def is_used_up(self, lane: Lane, message: Message) -> bool:
        """Return True, and make it a dead letter, if all attempts of the policy were begun, whatever became
        of them.
        """
        subscription = self.subscription(lane)
        if message.attempt <= subscription.retry.attempts or lane.is_suspect(message):
            return False  # suspects are looked at before they run in any case
        failures.used_up(lane, message, subscription, self._turns.server_now())
        self.dispatcher(lane).heed_end()
        return True

    def held_back(self, lane: Lane, message: Message) -> bool:
        if not lane.must_wait(message):
            return False
        lane.hold(message)
        return True

    def _mark_running(self, index: int, messages: list[Message]) -> None:
        first, last, now = messages[0].id.encode(), messages[-1].id.encode(), time.monotonic()
        if len(messages) == 1:
            self._progress.running(self._slot, index, first, now)
        else:
            self._progress.batch_running(self._slot, index, first, last, now)

    def may_go_on(self, lane: Lane) -> bool:
        """Return whether the slice may go on, before each message: nobody wants the slot, and the lane is
        still ours.
        """
        progress = self._progress
        if progress.stopping(self._slot) or (self.handled and time.monotonic() > self.ends):
            self.cut_short = True
        elif self.must_prove():
            self.on_line(self._turns.prove)
        return self.in_hand and not self.cut_short and not lane.lost

    def show_running(self, lane: Lane, first: str, last: str, since: float) -> None:
        """Show that several messages run, from `first` to `last`, the oldest since then."""
        index = self._index[id(lane)]
        self._progress.batch_running(self._slot, index, first.encode(), last.encode(), since)

    def show_finished(self, lane: Lane, message: Message, *, others: bool) -> None:
        """Show that one of several messages is done; `others` go on."""
        self._progress.ended(self._slot, self._index[id(lane)], [message.id.encode()], others=others)

    def must_prove(self) -> bool:
        """Return whether it is too long ago that the leases were surely ours."""
        return time.monotonic() - self._turns.proved > PROVE_SECONDS

    def settle_between(self) -> None:
        """Settle between two messages, if it is time. Waits for Redis to come back."""
        if self.is_due():
            self._settle_now()

    def is_due(self) -> bool:
        """Return whether what is handled should be settled now."""
        return time.monotonic() - self._settled_at > SETTLE_SECONDS

    def settle_or_raise(self) -> None:
        """Prove the leases and settle, if it is time. Never waits for Redis. Raises BusUnavailable."""
        if self.must_prove():
            self._turns.prove()
        if self.is_due():
            self._turns.settle()
            self.note_settled()

    def _settle_now(self) -> None:
        """Settle between two messages. Waits for Redis to come back."""
        self.on_line(self._turns.settle)
        self.note_settled()

    def _may_run_suspect(self, lane: Lane, message: Message) -> bool:
        """Return whether a message may run that may have killed whole workers.

        Its attempt is recorded before the handler runs. When all attempts have gone that way it is a dead
        letter.
        """
        if not lane.is_suspect(message):
            return True
        failures.suspect(lane, message, self.subscription(lane), self._turns.server_now())
        self.dispatcher(lane).heed_end()
        self._settle_now()
        return message.id in lane.failures and self.in_hand and not lane.lost

    def fail(self, lane: Lane, message: Message, failed: Failed, *, others: bool = False) -> None:
        """Keep a message that is not done; `others` that ran with it go on."""
        record = self._record(lane, message, failed)
        self._keep(lane, [], [(message.id.encode(), record)], others=others)
        failures.tell(message, failed, self.subscription(lane))
        self.dispatcher(lane).heed_end()

    def _record(self, lane: Lane, message: Message, failed: Failed) -> bytes:
        return failures.record(lane, message, failed, self._turns.server_now())

    def _keep(
        self, lane: Lane, done: list[bytes], refused: list[tuple[bytes, bytes]], *, others: bool = False
    ) -> None:
        """Have shared memory say what is to be settled, in case this process dies before it is."""
        index = self._index[id(lane)]
        if not self._progress.ended(self._slot, index, done, refused, others=others):
            self._settled_at = -math.inf  # there is no room: settle before anything else is run

    def count(self) -> int:
        """Return how many messages to fetch."""
        if self._concurrent:
            return CONCURRENCY  # they take as long together as the slowest of them
        if self._mean is None:
            return FIRST_COUNT
        return max(1, min(MAX_COUNT, int(BATCH_SECONDS / max(self._mean, 1e-6))))

    def _learn(self, handled: int, seconds: float) -> None:
        if handled:
            latest = seconds / handled
            self._mean = latest if self._mean is None else 0.7 * self._mean + 0.3 * latest
            self._progress.set_handler_ns(self._slot, int(self._mean * 1e9))

    def note_settled(self) -> None:
        """Note that all was settled just now: shared memory need not say it any more."""
        self._settled_at = time.monotonic()
        self._progress.forget_settled(self._slot)

    def dispatcher(self, lane: Lane) -> Dispatcher:
        return self._runtime.dispatcher(lane.id.topic, lane.id.group)

    def subscription(self, lane: Lane) -> Subscription:
        return self.dispatcher(lane).subscription


def pause(seconds: float) -> None:
    """Back off. Not a wait for a condition: there is nothing to be told by while Redis is away."""
    threading.Event().wait(seconds)
