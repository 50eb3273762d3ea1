"""What the main process asks of a pool process: slices over lanes. Small, picklable, without message data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.format.lane_id import LaneId
from bus.values import id_pair

#: The name of the one Celery task of the bus.
SLICE_TASK = "jitney.slice"

#: Seconds after which a slice ends, so that other lanes and ordinary tasks need not wait for long.
SLICE_SECONDS = 1.0

#: Lanes in one slice at most (the shared-memory slot has room for so many reports).
MAX_LANES = 64


class Report(IntFlag):
    """What a slice says of a lane at its end, through shared memory."""

    NONE = 0
    MORE = 1
    """There is or may be more to do at once."""
    RECOVER = 2
    """There are, or may be, left-overs in the pending list."""
    BLOCKED = 4
    """Nothing new may be fetched: held limit, or a failing partition. Only due retries count."""
    LOST = 8
    """The lease belongs to somebody else."""
    GONE = 16
    """The stream or the group is gone."""
    TROUBLE = 32
    """Redis could not be reached: back off."""
    BROKEN = 64
    """The slice ended by an error that nobody expects: back off."""


@dataclass(frozen=True, slots=True)
class Fallen:
    """What is known of the slice before, whose process died or that had to give the lane back."""

    finished: tuple[str, ...] = ()
    """Messages that were handled but not settled."""
    refused: tuple[bytes, ...] = ()
    """What became of messages that are not done, and not settled (see `bus.consuming.lane.Lane.refused`)."""
    running: str | None = None
    """The message in hand when the process died."""
    batch: bool = False
    """The message in hand was the last of a whole batch."""
    reason: str = "worker lost"

    def __bool__(self) -> bool:
        return bool(self.finished or self.refused or self.running)

    def keep_in(self, lane: Lane, attempts: int | None, now: int) -> None:
        """Keep all of it as outcomes of the lane, to be settled.

        `attempts`: of the retry policy, None where that is not known (then whoever handles the message next
        looks at it). `now`: ms by the server's clock.
        """
        for message_id in self.finished:
            lane.done_id(message_id)
        for record in self.refused:
            lane.refused(record)
        if self.running is not None and self.batch:
            lane.suspect = id_pair(self.running)
        elif self.running is not None:
            lane.blame(self.running, self.reason, attempts, now)


class LaneOrder(NamedTuple):
    """One lane to work on."""

    state: LaneState
    serial: int
    """Counts the slices under this lease: a child that ran the one before may go on with its lane."""
    fallen: Fallen | None = None
    """What the slice before has left to be settled."""

    @property
    def id(self) -> LaneId:
        """The lane's id."""
        return self.state.id


@dataclass(frozen=True, slots=True)
class SliceOrder:
    """One slice: lanes of one group of one topic set, to be worked on for about a second."""

    nonce: str
    """Known only in this process tree; a task message from anywhere else is refused."""
    slot: int
    lanes: tuple[LaneOrder, ...]
    handler_seconds: float | None
    """Mean time of the handler so far; None: not known yet."""

    def __json__(self) -> str:
        """For `celery inspect active`, which shows the arguments of tasks; the nonce stays secret."""
        first = self.lanes[0].id
        return f"{first.topic}/{first.partition} for {first.group}, {len(self.lanes)} lane(s)"
