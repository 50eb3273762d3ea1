"""A slice: a bounded run of turns on one or several lanes, in a pool process (or pool thread).

The order comes from the scheduler in the main process and carries no message data; what became of the
lanes goes back through shared memory, where it survives the death of this process.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import partial

from bus.consuming.blame import GroupGone
from bus.consuming.lane import Lane
from bus.consuming.turn import Turns
from bus.errors import BusUnavailable, InboxUnavailable, ServerError, StaleLease
from bus.safety.complaints import Complaints
from bus.signals import lease_lost
from bus.values import id_pair
from workers.handler_forks import handler_forks
from workers.middleware.log_context import forget
from workers.order import SLICE_SECONDS, LaneOrder, Report, SliceOrder
from workers.slices import failures, traces
from workers.slices.handling import Handling, pause
from workers.slices.runtime import Runtime

logger = logging.getLogger("jitney.workers")
complaints = Complaints(logger)
#: What may happen to many lanes in one moment: one line a second for each cause, which counts the others.
bursts = Complaints(logger, seconds=1.0)

#: Reports of lanes that the next slice must learn anew.
NOT_KEPT = Report.LOST | Report.GONE | Report.TROUBLE | Report.BROKEN
#: How long a slice that ran empty waits for more while nobody waits for its slot. Seconds.
LINGER_SECONDS = 0.05
#: A slice over several lanes runs so long at least before it ends because another slot waits. Seconds.
BEFORE_SHARING_SECONDS = 0.1


class Slice:
    """One run of an order."""

    def __init__(self, runtime: Runtime, order: SliceOrder) -> None:
        self._runtime = runtime
        self._order = order
        self._progress = runtime.progress
        self._slot = order.slot
        self._settings = runtime.bus.settings
        self._silent = False
        self._trouble = Report.NONE
        self._lanes = [self._lane(lane_order) for lane_order in order.lanes]
        self._drain_only = any(lane_order.state.drain_only for lane_order in order.lanes)
        self._turns = Turns(
            runtime.bus.endpoint,
            self._lanes,
            held_limit=self._settings.held_limit,
            dead_limit=self._settings.dead_limit,
            drain_only=self._drain_only,
            sizes=runtime.sizes[order.lanes[0].id.topic, order.lanes[0].id.group],
        )
        self._hand = Handling(runtime, self._turns, self._lanes, self._slot, order.handler_seconds)

    def _lane(self, order: LaneOrder) -> Lane:
        state = order.state
        serial, lane = self._runtime.lanes.pop(state.id, (0, None))
        if lane is not None and serial == order.serial - 1 and lane.lease == state.lease:
            lane.go_on(state)
            return lane
        return Lane(state, self._runtime.bus.keys.partition(state.id.topic, state.id.partition))

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        """Work on the lanes until they are empty, the time is over, or the slot is wanted back."""
        handler_forks.begin_slice()
        self._runtime.make_room()
        self._progress.begin(self._slot, os.getpid())
        try:
            self._turns.open(self._runtime.take_link())
            self.settle_for_the_dead()
            self._work()
        except StaleLease:
            self._hand.cut_short = True
        except GroupGone as error:
            bursts.say("gone", "A consumer group of %s is gone and will be made again: %s",
                       self._place(), error)  # fmt: skip
            self._trouble = Report.GONE | Report.RECOVER
        except BusUnavailable as error:
            complaints.trouble(error, "The slice of %s gives up for now: %s", self._place(), error)
            self._trouble = Report.TROUBLE | Report.RECOVER
        except InboxUnavailable as error:
            # The message in hand has not begun.
            self._progress.stopped(self._slot)
            group = self._order.lanes[0].id.group
            complaints.say(
                (self._settings.prefix, group), "Group %s waits: %s", group, error, level=logging.ERROR
            )
            self._trouble = Report.TROUBLE | Report.RECOVER
        except ServerError as error:
            # Such as a key of another type. Celery would log a traceback for each slice, with no key in it.
            bursts.say(("refused", error.code), "The server refuses the slice of %s: %s",
                       self._place(), error, level=logging.ERROR)  # fmt: skip
            self._trouble = Report.TROUBLE | Report.RECOVER
        except BaseException as error:
            # The main process goes by what is in the slot: what was finished is settled, and what ran has had
            # an attempt. If somebody ends this process, its end says so.
            self._silent = self._runtime.is_ending()
            self._trouble = Report.BROKEN | Report.RECOVER
            if not self._silent:
                bursts.say(("broken", type(error)), "The slice of %s was broken off by %s.",
                               self._place(), traces.reason(error), level=logging.ERROR)  # fmt: skip
            raise
        finally:
            handler_forks.end_child(sys.exception())  # in whatever way it has come here
            if not self._silent:
                self._report()
            self._runtime.leave_link(self._turns.close())
            forget()

    def _work(self) -> None:
        ends = self._hand.ends = time.monotonic() + SLICE_SECONDS
        while not self._hand.cut_short:
            delivery = self._hand.on_line(lambda: self._turns.take(self._hand.count()))
            self._hand.note_settled()
            if any(messages for _, messages in delivery):
                self._hand.handle(delivery)
                if time.monotonic() >= ends or self._should_share(ends):
                    self._hand.cut_short = True
            elif not any(lane.recovering for lane in self._turns.lanes) and not self._linger(ends):
                break
        self._hand.on_line(self._turns.settle)
        self._hand.on_line(self._turns.mark_unordered)
        self._hand.note_settled()

    def _should_share(self, ends: float) -> bool:
        """Return whether to end early: a slot waits, and this slice has several lanes to deal out anew."""
        ran_long = time.monotonic() - ends + SLICE_SECONDS > BEFORE_SHARING_SECONDS
        return len(self._turns.lanes) > 1 and ran_long and self._progress.wanted(self._slot)

    def settle_for_the_dead(self) -> None:
        """Settle what the slice before has left, whose process died or that had to give a lane back."""
        fallen = []
        for lane, order in zip(self._lanes, self._order.lanes, strict=True):
            if order.fallen and not lane.lost:
                attempts = self._hand.subscription(lane).retry.attempts
                order.fallen.keep_in(lane, attempts, self._turns.server_now())
                fallen.append(lane)
        self._hand.on_line(self._turns.settle)
        self._progress.took_in(self._slot)
        if fallen:
            self._hand.on_line(partial(self._turns.relearn, fallen))

    # ------------------------------------------------------------------ pace

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
            pause(wait)
            return due_in is not None and due_in <= LINGER_SECONDS
        try:
            came = self._hand.on_line(
                lambda: self._turns.wait(wait, lambda client: progress.waiting(self._slot, client))
            )
        finally:
            progress.awake(self._slot)
        return bool(came) or not self._hand.in_hand or (due_in is not None and due_in <= LINGER_SECONDS)

    # ------------------------------------------------------------------ the end

    def _place(self) -> str:
        """Return, for the log, what this slice works on: the key of its first lane, and how many more there
        are.
        """
        lane = self._lanes[0]
        more = f" and {len(self._lanes) - 1} more" if len(self._lanes) > 1 else ""
        return f"{lane.keys.stream}, group {lane.id.group}{more}"

    def _report(self) -> None:
        due = {id(lane): self._due_at(lane) for lane in self._lanes}
        for number, (lane, order) in enumerate(zip(self._lanes, self._order.lanes, strict=True)):
            flags = self._trouble
            if lane.trouble is not None:
                flags |= Report.TROUBLE | Report.RECOVER
                bursts.say("foreign", "%s/%s for %s cannot be worked on, and is tried again: %s",
                           lane.id.topic, lane.id.partition, lane.id.group, lane.trouble,
                           level=logging.ERROR)  # fmt: skip
            elif lane.lost:
                flags |= Report.LOST
            if flags & Report.LOST and not self._progress.revoked(self._slot):
                failures.announce(lease_lost, type(self), lane=lane.id)
                bursts.say("lost", "The lease of %s/%s for %s was lost; another worker goes on there.",
                           lane.id.topic, lane.id.partition, lane.id.group)  # fmt: skip
            if lane.recovering:
                flags |= Report.RECOVER | Report.MORE
            if self._hand.cut_short:
                flags |= Report.MORE
            if not lane.may_fetch(self._settings.held_limit):
                flags |= Report.BLOCKED
            if lane.ordering != "none" and not flags & NOT_KEPT:
                self._runtime.lanes[order.id] = (order.serial, lane)
            ms, seq = id_pair(lane.last_id or "0-0")
            self._progress.report(self._slot, number, int(flags), ms, seq, due[id(lane)], lane.history)

    def _due_at(self, lane: Lane) -> int:
        """Return when the next retry is due, in ms of CLOCK_MONOTONIC, which all processes here share; -1:
        never.
        """
        if lane.next_due is None:
            return -1
        return max(1, int(time.monotonic() * 1000) + lane.next_due - self._turns.server_now())


def run(runtime: Runtime, order: SliceOrder) -> None:
    """Make the slice and run it. Raises what it does not expect, after it has told its lanes."""
    try:
        made = Slice(runtime, order)
    except Exception:
        # Without a word it would seem to have died, and be begun again at once.
        runtime.progress.begin(order.slot, os.getpid())
        for number in range(len(order.lanes)):
            runtime.progress.report(order.slot, number, int(Report.BROKEN | Report.RECOVER), 0, 0, -1)
        raise
    made.run()
