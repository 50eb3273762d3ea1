"""What the main process knows of the lanes that it owns, and of the slices that run on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bus.consuming.lane_state import LaneState
from bus.format.lane_id import LaneId
from bus.values import Ordering, RetryPolicy
from workers.order import Fallen, LaneOrder, Report, SliceOrder
from workers.slot_view import SlotView

#: The waits of a lane whose slice had trouble, each twice as long as the one before.
BACKOFF = RetryPolicy(delay=0.1, max_delay=5.0, jitter=0.5)

Stage = Literal["watched", "ready", "running", "backing off", "taken back", "given up"]

#: Parts of a report as plain numbers, which cost a tenth of the others.
_BROKEN_OFF = int(Report.TROUBLE | Report.BROKEN)
_GONE, _RECOVER, _BLOCKED = int(Report.GONE), int(Report.RECOVER), int(Report.BLOCKED)


@dataclass(slots=True)
class OwnedLane:
    """A lane whose lease this worker holds. Its stage changes by the methods here alone.

    watched ─wait_for_slot─▶ ready ─run─▶ running ─▶ watched | ready | backing off | taken back | given up
    """

    state: LaneState
    """What the next slice is told of it."""
    stage: Stage = "ready"
    since: float = 0.0
    """When it entered its stage, by the monotonic clock."""
    serial: int = 0
    """Counts the slices under this lease (see workers.order.LaneOrder)."""
    fallen: Fallen | None = None
    blocked: bool = False
    """Nothing new may be fetched: held limit, or a failing partition. Only due retries count."""
    due: float | None = None
    """When the next retry is due, or the back-off over, by the monotonic clock."""
    doubted: bool = False
    """While it was running the server was lost: what the slice reports may be of another history."""
    troubles: int = 0
    """Slices in a row that ended in trouble."""
    leaving: bool = False
    """To be given up when its slice ends."""
    news: bool = False
    """Something arrived while it was running."""
    suspect: bool = False
    """What is pending may have killed a process: whoever has the lane next handles it one by one."""
    id: LaneId = field(init=False)

    def __post_init__(self) -> None:
        self.id = self.state.id

    @property
    def lease(self) -> str:
        """Return the value of the lease under which it is worked on."""
        return self.state.lease

    @property
    def ordering(self) -> Ordering:
        """Return the ordering in effect."""
        return self.state.ordering

    @property
    def closed(self) -> bool:
        """Return whether another ordering is declared, so that nothing new is fetched."""
        return self.state.closed

    # ------------------------------------------------------------------ stages

    def wait_for_slot(self, now: float) -> None:
        """Have it wait for a slot: it has work."""
        self.stage, self.since, self.due = "ready", now, None

    def run(self, now: float) -> LaneOrder:
        """Begin its slice. Return the order for it."""
        self.stage, self.since, self.news = "running", now, False
        self.serial += 1
        return LaneOrder(self.state, self.serial, self.fallen)

    def watch(self, now: float) -> None:
        """Have it wait for news: nothing is left to do."""
        self.stage, self.since = "watched", now

    def watch_from(self, position: str) -> None:
        """Have it wait for news: nothing is left to do, and the group was given all up to this id."""
        self.stage, self.state = "watched", self.state.at_rest(position)

    def back_off(self, now: float) -> None:
        """Have it wait after a slice in trouble, longer each time. `now`: by the monotonic clock."""
        self.troubles += 1
        self.stage, self.since, self.due = "backing off", now, now + BACKOFF.delay_after(self.troubles)

    def take_back(self, left: Fallen | None) -> None:
        """Have it wait for a new lease: a process may still work on it under the one that it has."""
        self.fallen = left
        self.stage, self.since, self.due = "taken back", -math.inf, None

    def give_up(self) -> None:
        """Begin no slice here any more: its lease will be given back."""
        self.stage = "given up"

    # ------------------------------------------------------------------ what becomes known

    def left(self, view: SlotView, index: int, reason: str) -> Fallen:
        """Return what a slice, of which this was lane number `index`, has left to be settled here, as shared
        memory says.

        Until it had settled what it found, that is all. `reason`: what is said of the message in hand.
        """
        if self.fallen is not None and not view.took_in:
            return self.fallen
        finished = tuple(message_id for number, message_id in view.finished if number == index)
        refused = tuple(record for number, record in view.refused if number == index)
        running = view.running
        if running is None or running.lane_index != index:
            return Fallen(finished, refused)
        if view.batch_end is not None:
            return Fallen(finished, refused, view.batch_end, True, reason)
        return Fallen(finished, refused, running.id, False, reason)

    def hear(self, view: SlotView, index: int) -> Report:
        """Take in what its slice, which has ended, says of it. `index`: its number among the lanes there."""
        report = next((report for report in view.reports if report.lane_index == index), None)
        # Without a report the slice broke before it could say anything.
        flags = int(Report.BROKEN | Report.RECOVER) if report is None else report.flags
        if flags & _BROKEN_OFF:
            # As after a death: what was handled is not handled again, and what broke it has had an attempt.
            why = "its slice was broken off by an error: see the worker's log"
            self.fallen = self.left(view, index, why) or None
        elif view.took_in:
            self.fallen = None
        recover, self.blocked = bool(flags & _RECOVER), bool(flags & _BLOCKED)
        self.due = report.next_due_ms / 1000 if report is not None and report.next_due_ms >= 0 else None
        if report is not None and not flags & (_BROKEN_OFF | _GONE):
            self.troubles = 0
            last_id = f"{report.last_ms}-{report.last_seq}"
            self.state = self.state.worked_on(last_id, report.history, recover=recover)
        elif flags & _GONE:
            self.state = self.state.made_again(recover=recover)
        else:
            self.state = self.state.unsure(recover=recover)
        return Report(flags)

    def died(self, left: Fallen) -> None:
        """Take in what the process that worked on it has left, now that it has died."""
        # The serial goes on: under the same lease a process may remember what it left at an earlier one.
        self.fallen, self.state, self.serial = left, self.state.with_leftovers(), self.serial + 1

    def renew(self, lease: str) -> None:
        """Change its lease: no process goes on with what it remembers of the lane."""
        self.state, self.serial = self.state.leased(lease), 0

    def doubt(self) -> None:
        """Have it ask the server anew, which may have come back with older data.

        What a slice that runs reports may be of before.
        """
        self.doubted = self.stage == "running"
        # With a serial left out no process goes on with what it remembers of the lane.
        self.state, self.serial = self.state.unsure(recover=True), self.serial + 1

    def close_or_open(self, declared: Mapping[tuple[str, str], Ordering]) -> bool:
        """Close it if another ordering is declared for its (topic, group), else open it; True if it opens."""
        before, ordering = self.state.closed, self.state.ordering
        closed = declared.get((self.id.topic, self.id.group), ordering) != ordering
        if closed != before:
            self.state = self.state._replace(closed=closed)
        return before and not closed

    def news_after(self) -> str | None:
        """Return the id after which a message would be news; None: not known, or it could not be fetched."""
        return None if self.blocked or self.state.closed else self.state.last_id


@dataclass(slots=True)
class Running:
    """A slice that was sent to the pool."""

    order: SliceOrder
    lanes: list[OwnedLane]
    began: float
    revoked: bool = False
    stuck_in: tuple[int, str] | None = None


@dataclass(slots=True)
class Ended:
    """What follows from the end of a slice, for those who can talk to Redis."""

    free: list[OwnedLane] = field(default_factory=list)
    """Lanes that are given up."""
    lost: list[OwnedLane] = field(default_factory=list)
    broken: list[OwnedLane] = field(default_factory=list)
    """Lanes whose slice ended by an error that nobody expects."""
    gone: bool = False
    """A stream or group is gone and must be made again."""
