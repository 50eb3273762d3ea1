"""What a slice does with the messages that it has in hand: handler by handler, settled in between.

The slice fetches; this runs the handlers, looks up before each message whether it may go on, and keeps what
became of each in its lane until a turn settles it.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from bus import codec
from bus.errors import BusUnavailable
from bus.lane import Lane
from bus.plan import Batch
from bus.subscriptions import Subscription
from bus.turn import Turns
from bus.values import Message, id_pair
from workers import failures
from workers.chains import CONCURRENCY, Chains
from workers.dispatch import Dispatcher, Failed
from workers.liveness import DEAD_SECONDS
from workers.runtime import Runtime

logger = logging.getLogger("jitney.workers")

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
        """The slice ends before its lanes are empty."""
        self.handled = False
        """At least one message was."""
        self.in_hand = True
        """False: the connection broke, so what was fetched is to be looked up in the pending list."""

    def on_line(self, work: Callable[[], Any]) -> Any:
        """Run a turn; when the connection breaks, connect again, prove the leases, and lose nothing.

        After a break nothing is in hand: what had been fetched is looked up in the pending list.
        """
        gives_up = time.monotonic() + RECONNECT_SECONDS
        delay = 0.05
        try:
            return work()
        except BusUnavailable as error:
            broken: BusUnavailable = error
        while time.monotonic() < gives_up and not self._progress.draining:
            pause(delay * random.uniform(0.5, 1.5))
            delay = min(1.0, delay * 2)
            try:
                self._turns.reopen()
            except BusUnavailable as error:
                broken = error
            else:
                self.in_hand = False
                return []
        raise broken

    # ------------------------------------------------------------------ a batch

    def handle(self, batch: Batch) -> None:
        self.in_hand = True
        for lane, messages in batch:
            if self.cut_short or not self.in_hand:
                # Fetched and not run: without this mark nobody would look for them in the pending list.
                lane.leave_over()
            elif self.dispatcher(lane).is_concurrent and lane.suspect is None:
                self._handle_concurrently(lane, messages)
            elif self.subscription(lane).batch is None:
                self._handle_singly(lane, messages)
            else:
                self._handle_in_batches(lane, messages)

    def _handle_singly(self, lane: Lane, messages: list[Message]) -> None:
        began = time.monotonic()
        handled = self._handle_smoothly(lane, messages) if lane.is_smooth() else 0
        if handled < len(messages):
            handled += self._handle_carefully(lane, messages[handled:])
        self._learn(handled, time.monotonic() - began)

    def _handle_smoothly(self, lane: Lane, messages: list[Message]) -> int:
        """Handle messages while there is nothing to look up or to settle, and nothing fails; how many.

        The hot path: what can be looked up once for all messages is.
        """
        progress, slot = self._progress, self._slot
        handle, acks, handled = self.dispatcher(lane).handle, lane.acks, 0
        if not lane.recovering:  # or what killed a process while it was decoded would do so for ever
            codec.decode_ahead(messages)
        for message in progress.each(slot, self._index[id(lane)], messages, self._next_look()):
            handled += 1
            failed = handle(message)
            if failed is not None:
                self.fail(lane, message, failed)
                break
            acks.append(message.id)
            if lane.lost:  # the handler has asked
                progress.finished(slot)
                break
        self.handled = self.handled or handled > 0
        return handled

    def _handle_carefully(self, lane: Lane, messages: list[Message]) -> int:
        """Handle messages with a look at everything that may stop or delay each; how many were."""
        progress, slot, index = self._progress, self._slot, self._index[id(lane)]
        handle, handled, next_look = self.dispatcher(lane).handle, 0, -math.inf
        for message in messages:
            if time.monotonic() > next_look or lane.lost or progress.stopping(slot):
                self.settle_if_due()
                if not self.may_go_on(lane):
                    lane.leave_over()
                    break
                next_look = self._next_look()
            if lane.failing and self.held_back(lane, message):
                continue
            if lane.suspect is not None and not self._may_run_suspect(lane, message):
                if not self.in_hand or lane.lost:
                    lane.leave_over()
                    break
                continue
            progress.running(slot, index, message.id.encode(), time.monotonic())
            failed = handle(message)
            if failed is None:
                lane.done(message)
                progress.finished(slot)
            else:
                self.fail(lane, message, failed)
            handled += 1
            self.handled = True
        return handled

    def _next_look(self) -> float:
        """Until when messages may be started with no look at the leases, the settling and the slice's end."""
        return min(self.ends, self._turns.proved + PROVE_SECONDS, self._settled_at + SETTLE_SECONDS)

    def _handle_concurrently(self, lane: Lane, messages: list[Message]) -> None:
        crew = _Crew(self, lane)
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
            lane.leave_over()
        self._learn(crew.ended, crew.busy)

    def _handle_in_batches(self, lane: Lane, messages: list[Message]) -> None:
        size = self.subscription(lane).batch or 1
        began = time.monotonic()
        step = 1 if lane.suspect is not None else size
        for start in range(0, len(messages), step):
            if not self.may_go_on(lane):
                lane.leave_over()
                break
            self._handle_batch(lane, messages[start : start + step])
            self.handled = True
            self.settle_if_due()
        self._learn(len(messages), time.monotonic() - began)

    def _handle_batch(self, lane: Lane, messages: list[Message]) -> None:
        ready = [message for message in messages if not self.held_back(lane, message)]
        if not ready:
            return
        if lane.suspect is not None and not self._may_run_suspect(lane, ready[0]):
            if not self.in_hand or lane.lost:
                lane.leave_over()
            return
        index = self._index[id(lane)]
        self._mark_running(index, ready)
        failed = self.dispatcher(lane).handle_batch(ready)
        if failed is None:
            # It raised, on nobody knows which message: each is delivered alone, in order.
            self._progress.stopped(self._slot)
            for message in ready:
                if not self.may_go_on(lane):
                    lane.leave_over()
                    break
                self._handle_batch(lane, [message])
            return
        done = [message for message in ready if message.id not in failed]
        for message in done:
            lane.done(message)
        ids = (message.id.encode() for message in done)
        self._progress.batch_finished(self._slot, index, ids)
        for message in ready:
            if message.id in failed:
                self.fail(lane, message, failed[message.id])

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
        """Look up before each message: is the slot wanted, and is the lane surely still ours?"""
        progress = self._progress
        if progress.stopping(self._slot) or (self.handled and time.monotonic() > self.ends):
            self.cut_short = True
        elif self.must_prove():
            self.on_line(self._turns.prove)
        return self.in_hand and not self.cut_short and not lane.lost

    def show_running(self, lane: Lane, first: str, last: str, since: float) -> None:
        """Several messages run, from `first` to `last`, the oldest since then."""
        index = self._index[id(lane)]
        self._progress.batch_running(self._slot, index, first.encode(), last.encode(), since)

    def show_finished(self, lane: Lane, message: Message) -> None:
        """One of several messages is done."""
        ids = [message.id.encode()]
        self._progress.batch_finished(self._slot, self._index[id(lane)], ids)

    def must_prove(self) -> bool:
        """It is too long ago that the leases were surely ours."""
        return time.monotonic() - self._turns.proved > PROVE_SECONDS

    def settle_if_due(self) -> None:
        if self.is_due():
            self._settle_between()

    def is_due(self) -> bool:
        """What is handled should be settled now."""
        return time.monotonic() - self._settled_at > SETTLE_SECONDS

    def settle_or_fail(self) -> None:
        """Settle and prove, without waiting for Redis to come back. Raises BusUnavailable."""
        if self.must_prove():
            self._turns.prove()
        if self.is_due():
            self._turns.settle()
            self.mark_settled()

    def _settle_between(self) -> None:
        self.on_line(self._turns.settle)
        self.mark_settled()

    def _may_run_suspect(self, lane: Lane, message: Message) -> bool:
        """A message that may have killed whole workers: its attempt is recorded before the handler runs, and
        when all attempts have gone that way it is a dead letter."""
        if not lane.is_suspect(message):
            return True
        failures.suspect(lane, message, self.subscription(lane), self._turns.server_now())
        self._settle_between()
        return message.id in lane.failures and self.in_hand and not lane.lost

    def fail(self, lane: Lane, message: Message, failed: Failed) -> None:
        self._progress.stopped(self._slot)
        failures.record(lane, message, failed, self.subscription(lane), self._turns.server_now())

    def count(self) -> int:
        """How many messages to fetch."""
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

    def mark_settled(self) -> None:
        self._settled_at = time.monotonic()
        self._progress.settled(self._slot)

    def dispatcher(self, lane: Lane) -> Dispatcher:
        return self._runtime.dispatcher(lane.id.topic, lane.id.group)

    def subscription(self, lane: Lane) -> Subscription:
        return self.dispatcher(lane).subscription


def pause(seconds: float) -> None:
    """Back off. Not a wait for a condition: there is nothing to be told by while Redis is away."""
    threading.Event().wait(seconds)


class _Crew:
    """Handlers that run at once, as one slot of shared memory shows them: like a batch that is in hand.

    If the process dies, all that ran are suspects, and are then handled one by one. A hard time limit counts
    from the beginning of the one that has run for longest.
    """

    def __init__(self, hand: Handling, lane: Lane) -> None:
        self._hand = hand
        self._lane = lane
        self._since: dict[str, float] = {}
        self.ended = 0
        self.busy = 0.0
        """Seconds that handlers took, added up."""
        self.broken = False
        """Redis cannot be reached. The loop must not stand still for that: other handlers would seem slow."""

    async def work(self, chains: Chains) -> bool:
        """Run the chains; False if some messages were not started."""
        went_on = await chains.run(self._hand.dispatcher(self._lane).handle_async, self)
        # Asynchronous queries have a thread of their own, which Celery does not care for.
        await sync_to_async(close_old_connections)()
        return went_on

    def may_begin(self) -> bool:
        if self.broken or self._settle_fails():
            return False
        return self._hand.may_go_on(self._lane)

    def _settle_fails(self) -> bool:
        try:
            self._hand.settle_or_fail()
        except BusUnavailable as error:
            logger.debug("Handlers that run are let end; then Redis is waited for: %s", error)
            self.broken = True
        return self.broken

    def begin(self, message: Message) -> bool:
        if self._hand.held_back(self._lane, message):
            return False
        self._since[message.id] = time.monotonic()
        self._show()
        self._hand.handled = True
        return True

    def end(self, message: Message, failed: Failed | None) -> None:
        self.busy += time.monotonic() - self._since.pop(message.id)
        self.ended += 1
        if failed is None:
            self._lane.done(message)
            self._hand.show_finished(self._lane, message)
        else:
            self._hand.fail(self._lane, message, failed)
        self._show()

    def tick(self) -> None:
        if not self.broken:
            self._settle_fails()
        self._show()  # settling forgets what was finished, and what runs

    def _show(self) -> None:
        if self._since:
            ids = sorted(self._since, key=id_pair)
            self._hand.show_running(self._lane, ids[0], ids[-1], min(self._since.values()))
