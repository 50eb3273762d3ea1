"""The values that the main process reads from a slot of shared memory (see `workers.progress`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class InHand(NamedTuple):
    """The message that a slot runs (of a batch: the first), and since when, by time.monotonic()."""

    lane_index: int
    id: str
    since: float


class LaneReport(NamedTuple):
    """The report of a slice on one of its lanes. Only the slice and the scheduler know its `flags`."""

    lane_index: int
    flags: int
    last_ms: int
    last_seq: int
    next_due_ms: int
    history: int = 0
    """The history of the server (see bus.streams.history)."""


@dataclass(frozen=True, slots=True)
class SlotView:
    """All that the main process reads of one slot, at one moment."""

    pid: int
    running: InHand | None
    batch_end: str | None
    """The id of the last message of the batch that runs; None if no batch runs."""
    finished: list[tuple[int, str]]
    """(lane index, id) of messages that are done, but not settled yet."""
    refused: list[tuple[int, bytes]]
    """(lane index, record) of messages that failed, and are not settled yet (see
    `bus.consuming.lane.Lane.refused`)."""
    reports: list[LaneReport]
    took_in: bool
    """True once this slice has settled what the slice before had left."""
    client_id: int
    handler_ns: float
