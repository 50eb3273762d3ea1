"""What the main process knows of the lanes that it owns, and of the slices that run on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bus.format.lane_id import LaneId
from bus.values import Ordering, RetryPolicy
from workers.order import Fallen, LaneOrder, Report, SliceOrder
from workers.slot_view import SlotView

#: The waits of a lane whose slice had trouble, each twice as long as the one before.
BACKOFF = RetryPolicy(delay=0.1, max_delay=5.0, jitter=0.5)

State = Literal["watched", "ready", "running", "backing off", "taken back", "given up"]


@dataclass(slots=True)
class OwnedLane:
    """A lane whose lease this worker holds."""

    id: LaneId
    lease: str
    ordering: Ordering
    state: State = "ready"
    last_id: str | None = None
    seen: str | None = None
    """The greatest id that the group was known to be at."""
    history: int = 0
    """The history of the server in which the last slice left it (see bus.streams.history)."""
    doubted: bool = False
    """While it was running the server was lost: what the slice reports may be of another history."""
    serial: int = 0
    recover: bool = True
    blocked: bool = False
    fallen: Fallen | None = None
    due: float | None = None
    """When the next retry is due, by the monotonic clock."""
    since: float = 0.0
    """When it entered its state."""
    troubles: int = 0
    leaving: bool = False
    closed: bool = False
    """Another ordering is declared: nothing new is fetched until what is pending is settled."""
    drain_only: bool = False
    news: bool = False
    """Something arrived while it was running."""
    suspect: bool = False
    """What is pending may have killed a process: whoever has the lane next handles it one by one."""

    def left(self, view: SlotView, index: int, reason: str) -> Fallen:
        """What a slice, of which this was lane number `index`, has left to be settled here, as shared memory
        says.

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
        """Its slice, of which this was lane number `index`, has ended: take in what it says of this lane."""
        report = next((each for each in view.reports if each.lane_index == index), None)
        # Without a report the slice broke before it could say anything.
        flags = Report.BROKEN | Report.RECOVER if report is None else Report(report.flags)
        if flags & (Report.TROUBLE | Report.BROKEN):
            # As after a death: what was handled is not handled again, and what broke it has had an attempt.
            why = "its slice was broken off by an error: see the worker's log"
            self.fallen = self.left(view, index, why) or None
        elif view.took_in:
            self.fallen = None
        self.recover, self.blocked = bool(flags & Report.RECOVER), bool(flags & Report.BLOCKED)
        self.due = report.next_due_ms / 1000 if report is not None and report.next_due_ms >= 0 else None
        if report is None or flags & (Report.TROUBLE | Report.BROKEN | Report.GONE):
            self.last_id = None
            if flags & Report.GONE:
                self.seen = None  # what is made again may begin anywhere
        else:
            self.troubles, self.history = 0, report.history
            self.last_id = self.seen = f"{report.last_ms}-{report.last_seq}"
        return flags

    def order(self) -> LaneOrder:
        """For the next slice."""
        self.serial += 1
        return LaneOrder(
            self.id, self.lease, self.last_id, self.seen, self.history, self.serial, self.recover,
            self.fallen, self.ordering, self.closed, self.drain_only,
        )  # fmt: skip

    def rest_at(self, position: str) -> None:
        """Nothing is left to do there now, and the group was given all up to this id."""
        self.state, self.last_id, self.seen, self.recover = "watched", position, position, False

    def take_back(self, left: Fallen | None) -> None:
        """A process may still work on it under the lease that it has: it waits for a new one."""
        self.fallen = left
        self.state, self.since, self.due = "taken back", -math.inf, None

    def died(self, left: Fallen) -> None:
        """The process that worked on it has died, and left this."""
        # The serial goes on: under the same lease a process may remember what it left at an earlier one.
        self.fallen, self.recover, self.serial = left, True, self.serial + 1

    def news_after(self) -> str | None:
        """The id after which a message would be news; None: not known, or it could not be fetched."""
        return None if self.blocked or self.closed else self.last_id

    def order_by(self, declared: Mapping[tuple[str, str], Ordering]) -> bool:
        """Close it if another ordering is declared for its (topic, group), else open it; True if it opens."""
        before = self.closed
        self.closed = declared.get((self.id.topic, self.id.group), self.ordering) != self.ordering
        return before and not self.closed

    def back_off(self, now: float) -> None:
        """Its slice had trouble: wait, longer each time. `now`: by the monotonic clock."""
        self.troubles += 1
        self.state, self.since, self.due = "backing off", now, now + BACKOFF.delay_after(self.troubles)

    def doubt(self) -> None:
        """The server may have come back with older data. What a slice that runs reports may be of before."""
        self.doubted = self.state == "running"
        # With a serial left out no process goes on with what it remembers of the lane.
        self.last_id, self.recover, self.serial = None, True, self.serial + 1


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
    """A stream or group has vanished and must be made again."""
