"""A slice: a bounded run of turns on one or several lanes, in a pool process (or pool thread).

The order comes from the scheduler in the main process and carries no message data; what became of the
lanes goes back through shared memory, where it survives the death of this process.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from bus.errors import BusUnavailable, StaleLease
from bus.lane import Lane
from bus.plan import Batch, GroupLost
from bus.signals import lease_lost
from bus.subscriptions import Subscription
from bus.turn import Turns
from bus.values import Message, id_pair
from workers import failures
from workers.dispatch import Dispatcher, Failed
from workers.liveness import DEAD_SECONDS
from workers.middleware.log_context import forget
from workers.order import SLICE_SECONDS, LaneOrder, Report, SliceOrder
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
#: How long a slice that ran empty waits for more while nobody waits for its slot. Seconds.
LINGER_SECONDS = 0.05
#: A slice over several lanes runs so long at least before it ends because another slot waits. Seconds.
SHARE_SECONDS = 0.1
#: How long a slice goes on trying to reach Redis again before it gives up what it has not settled. Seconds.
RECONNECT_SECONDS = 60.0


class Slice:
    """One run of an order."""

    def __init__(self, runtime: Runtime, order: SliceOrder) -> None:
        self._runtime = runtime
        self._order = order
        self._progress = runtime.progress
        self._slot = order.slot
        self._settings = runtime.bus.settings
        self._mean = order.handler_seconds
        self._settled_at = 0.0
        self._cut_short = False
        self._silent = False
        self._handled = False
        self._ends = 0.0
        self._in_hand = True
        self._trouble = Report.NONE
        self._lanes = [self._lane(each) for each in order.lanes]
        self._index = {id(lane): number for number, lane in enumerate(self._lanes)}
        self._drain_only = any(each.drain_only for each in order.lanes)
        self._turns = Turns(
            runtime.bus.endpoint,
            self._lanes,
            held_limit=self._settings.held_limit,
            dead_limit=self._settings.dead_limit,
            drain_only=self._drain_only,
        )

    def _lane(self, order: LaneOrder) -> Lane:
        known = self._runtime.lanes.pop(order.id, None)
        subscription = self._runtime.dispatcher(order.id.topic, order.id.group).subscription
        shared = subscription.ordering == "none"  # other lanes move the group and its retries too
        if (
            known is not None
            and known[0] == order.serial - 1
            and known[1].lease == order.lease
            and not shared
        ):
            lane = known[1]
            lane.last_id = order.last_id  # None: the main process has reason to doubt it
        else:
            keys = self._runtime.bus.keys.partition(order.id.topic, order.id.partition)
            lane = Lane(order.id, keys, order.lease, subscription.ordering, None if shared else order.last_id)
            lane.recovering, lane.seen = order.recover, order.seen
        if order.recover:
            lane.recovering, lane.position = True, "-"
        return lane

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        """Work on the lanes until they are empty, the time is over, or the slot is wanted back."""
        self._runtime.make_room()
        self._progress.begin(self._slot, os.getpid())
        try:
            self._turns.open(self._runtime.take_link())
            self._take_in_the_fallen()
            self._work()
        except StaleLease:
            self._cut_short = True
        except GroupLost as error:
            logger.warning("A consumer group has vanished and will be made again: %s", error)
            self._trouble = Report.GONE | Report.RECOVER
        except BusUnavailable as error:
            logger.debug("A slice gives up for now: %s", error)
            self._trouble = Report.TROUBLE | Report.RECOVER
        except Exception:
            self._trouble = Report.TROUBLE | Report.RECOVER
            raise
        except BaseException:
            # SystemExit out of a handler, or the end of this process: the main process goes by what is in
            # the slot, settles what was finished and counts an attempt of what ran.
            self._silent = True
            raise
        finally:
            if not self._silent:
                self._report()
            self._runtime.leave_link(self._turns.close())
            forget()

    def _work(self) -> None:
        ends = self._ends = time.monotonic() + SLICE_SECONDS
        while not self._cut_short:
            batch = self._on_line(lambda: self._turns.take(self._count()))
            self._mark_settled()
            if any(messages for _, messages in batch):
                self._handle(batch)
                if time.monotonic() >= ends or self._should_share(ends):
                    self._cut_short = True
            elif not any(lane.recovering for lane in self._turns.lanes) and not self._linger(ends):
                break
        self._on_line(self._turns.settle)
        self._on_line(self._turns.mark_unordered)
        self._mark_settled()

    def _should_share(self, ends: float) -> bool:
        """A slot waits, and this slice has several lanes: end early, so that they are dealt out anew."""
        ran_for = time.monotonic() - ends + SLICE_SECONDS
        return len(self._turns.lanes) > 1 and ran_for > SHARE_SECONDS and self._progress.wanted(self._slot)

    def _on_line(self, work: Callable[[], Any]) -> Any:
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
            _pause(delay * random.uniform(0.5, 1.5))
            delay = min(1.0, delay * 2)
            try:
                self._turns.reopen()
            except BusUnavailable as error:
                broken = error
            else:
                self._in_hand = False
                return []
        raise broken

    def _take_in_the_fallen(self) -> None:
        for lane, order in zip(self._lanes, self._order.lanes, strict=True):
            fallen = order.fallen
            if fallen is None or lane.lost:
                continue
            for message_id in fallen.finished:
                lane.finish(message_id)
            if fallen.running is not None and fallen.batch:
                lane.suspect = id_pair(fallen.running)
            elif fallen.running is not None:
                policy = self._subscription(lane).retry
                lane.blame(fallen.running, fallen.reason, policy.attempts, self._turns.server_now())
        self._on_line(self._turns.settle)

    # ------------------------------------------------------------------ a batch

    def _handle(self, batch: Batch) -> None:
        self._in_hand = True
        for lane, messages in batch:
            if self._cut_short or not self._in_hand:
                # Fetched and not run: without this mark nobody would look for them in the pending list.
                lane.leave_over()
            elif self._subscription(lane).batch is None:
                self._handle_singly(lane, messages)
            else:
                self._handle_in_batches(lane, messages)

    def _handle_singly(self, lane: Lane, messages: list[Message]) -> None:
        # The hot path: 3 µs for each message besides the handler, so what can be looked up once is.
        progress, slot, index = self._progress, self._slot, self._index[id(lane)]
        handle, stopping, running, finished = (
            self._dispatcher(lane).handle, progress.stopping, progress.running, progress.finished
        )  # fmt: skip
        clock, handled = time.monotonic, 0
        began = now = clock()
        for message in messages:
            look = lane.lost or stopping(slot) or now > self._ends or now - self._turns.proved > PROVE_SECONDS
            if look and not self._may_go_on(lane):
                lane.leave_over()
                break
            if lane.failing and self._held_back(lane, message):
                continue
            if lane.suspect is not None and not self._may_run_suspect(lane, message):
                if not self._in_hand or lane.lost:
                    lane.leave_over()
                    break
                continue
            running(slot, index, message.id.encode(), now)
            failed = handle(message)
            if failed is None:
                if lane.failures:
                    lane.done(message)
                else:
                    lane.acks.append(message.id)
                finished(slot)
            else:
                self._fail(lane, message, failed)
            handled += 1
            self._handled = True
            now = clock()
            if now - self._settled_at > SETTLE_SECONDS:
                self._settle_between()
                if not self._in_hand or lane.lost:
                    lane.leave_over()
                    break
        self._learn(handled, now - began)

    def _handle_in_batches(self, lane: Lane, messages: list[Message]) -> None:
        size = self._subscription(lane).batch or 1
        began = time.monotonic()
        step = 1 if lane.suspect is not None else size
        for start in range(0, len(messages), step):
            if not self._may_go_on(lane):
                lane.leave_over()
                break
            self._handle_batch(lane, messages[start : start + step])
            self._handled = True
            if time.monotonic() - self._settled_at > SETTLE_SECONDS:
                self._settle_between()
        self._learn(len(messages), time.monotonic() - began)

    def _handle_batch(self, lane: Lane, messages: list[Message]) -> None:
        ready = [message for message in messages if not self._held_back(lane, message)]
        if not ready:
            return
        if lane.suspect is not None and not self._may_run_suspect(lane, ready[0]):
            if not self._in_hand or lane.lost:
                lane.leave_over()
            return
        index = self._index[id(lane)]
        self._mark_running(index, ready)
        failed = self._dispatcher(lane).handle_batch(ready)
        if failed is None:
            # It raised, on nobody knows which message: each is delivered alone, in order.
            self._progress.stopped(self._slot)
            for message in ready:
                if not self._may_go_on(lane):
                    lane.leave_over()
                    break
                self._handle_batch(lane, [message])
            return
        done = [message for message in ready if message.id not in failed]
        for message in done:
            lane.done(message)
        ids = (message.id.encode() for message in done)
        self._progress.batch_finished(self._slot, index, ids, time.monotonic())
        for message in ready:
            if message.id in failed:
                self._fail(lane, message, failed[message.id])

    def _held_back(self, lane: Lane, message: Message) -> bool:
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

    def _may_go_on(self, lane: Lane) -> bool:
        """Look up before each message: is the slot wanted, and is the lane surely still ours?"""
        progress = self._progress
        if progress.stopping(self._slot) or (self._handled and time.monotonic() > self._ends):
            self._cut_short = True
        elif time.monotonic() - self._turns.proved > PROVE_SECONDS:
            self._on_line(self._turns.prove)
        return self._in_hand and not self._cut_short and not lane.lost

    def _settle_between(self) -> None:
        self._on_line(self._turns.settle)
        self._mark_settled()

    def _may_run_suspect(self, lane: Lane, message: Message) -> bool:
        """A message that may have killed whole workers: its attempt is recorded before the handler runs, and
        when all attempts have gone that way it is a dead letter."""
        if not lane.is_suspect(message):
            return True
        failures.suspect(lane, message, self._subscription(lane), self._turns.server_now())
        self._settle_between()
        return message.id in lane.failures and self._in_hand and not lane.lost

    def _fail(self, lane: Lane, message: Message, failed: Failed) -> None:
        self._progress.stopped(self._slot)
        failures.record(lane, message, failed, self._subscription(lane), self._turns.server_now())

    # ------------------------------------------------------------------ pace

    def _count(self) -> int:
        if self._mean is None:
            return FIRST_COUNT
        return max(1, min(MAX_COUNT, int(BATCH_SECONDS / max(self._mean, 1e-6))))

    def _learn(self, handled: int, seconds: float) -> None:
        if handled:
            latest = seconds / handled
            self._mean = latest if self._mean is None else 0.7 * self._mean + 0.3 * latest
            self._progress.set_handler_ns(self._slot, int(self._mean * 1e9))

    def _linger(self, ends: float) -> bool:
        """Wait a little for more; False ends the slice."""
        progress = self._progress
        due_in = self._turns.due_in()
        wait = min(LINGER_SECONDS, ends - time.monotonic(), LINGER_SECONDS if due_in is None else due_in)
        if self._drain_only or progress.draining or progress.wanted(self._slot) or ends <= time.monotonic():
            return False
        if wait <= 0:
            return due_in is not None
        if self._lanes[0].ordering == "none":
            return False  # the group's position moves under other lanes too, so there is no id to wait from
        if not any(lane.may_fetch(self._settings.held_limit) for lane in self._turns.lanes):
            _pause(wait)
            return due_in is not None and due_in <= LINGER_SECONDS
        try:
            came = self._on_line(
                lambda: self._turns.wait(wait, lambda client: progress.waiting(self._slot, client))
            )
        finally:
            progress.awake(self._slot)
        return bool(came) or not self._in_hand or (due_in is not None and due_in <= LINGER_SECONDS)

    def _mark_settled(self) -> None:
        self._settled_at = time.monotonic()
        self._progress.settled(self._slot)

    # ------------------------------------------------------------------ the end

    def _report(self) -> None:
        due = {id(lane): self._due_at(lane) for lane in self._lanes}
        for number, (lane, order) in enumerate(zip(self._lanes, self._order.lanes, strict=True)):
            flags = self._trouble
            if lane.lost:
                flags |= Report.LOST
            if lane.lost and not self._progress.revoked(self._slot):
                lease_lost.send_robust(type(self), lane=lane.id)
                logger.warning("The lease of %s/%s for %s was lost; another worker goes on there.",
                               lane.id.topic, lane.id.partition, lane.id.group)  # fmt: skip
            if lane.recovering:
                flags |= Report.RECOVER | Report.MORE
            if self._cut_short:
                flags |= Report.MORE
            if not lane.may_fetch(self._settings.held_limit):
                flags |= Report.BLOCKED
            if lane.ordering != "none" and not flags & (Report.LOST | Report.GONE | Report.TROUBLE):
                self._runtime.lanes[order.id] = (order.serial, lane)
            ms, seq = id_pair(lane.last_id or "0-0")
            self._progress.report(self._slot, number, int(flags), ms, seq, due[id(lane)])

    def _due_at(self, lane: Lane) -> int:
        """When the next retry is due, in ms of CLOCK_MONOTONIC, which all processes here share; -1: never."""
        if lane.next_due is None:
            return -1
        return max(1, int(time.monotonic() * 1000) + lane.next_due - self._turns.server_now())

    def _dispatcher(self, lane: Lane) -> Dispatcher:
        return self._runtime.dispatcher(lane.id.topic, lane.id.group)

    def _subscription(self, lane: Lane) -> Subscription:
        return self._dispatcher(lane).subscription


def _pause(seconds: float) -> None:
    """Back off. Not a wait for a condition: there is nothing to be told by while Redis is away."""
    threading.Event().wait(seconds)
