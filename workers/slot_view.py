"""What the main process reads of a slot in shared memory (see `workers.progress`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class InHand(NamedTuple):
    """The message that a slot runs (of a batch: the first), and since when by time.monotonic()."""

    lane_index: int
    id: str
    since: float


class LaneReport(NamedTuple):
    """What a slice left behind of one lane. The meaning of `flags` is the slice's own."""

    lane_index: int
    flags: int
    last_ms: int
    last_seq: int
    next_due_ms: int
    history: int = 0
    """Of the server (see bus.streams.history)."""


@dataclass(frozen=True, slots=True)
class SlotView:
    """A slot as the parent read it."""

    pid: int
    running: InHand | None
    batch_end: str | None
    """The id of the last message of the batch that runs; None where no batch does."""
    finished: list[tuple[int, str]]
    """(lane index, id) of messages that are done and not settled yet."""
    refused: list[tuple[int, bytes]]
    """(lane index, record) of messages that are not done, and not settled yet (see
    `bus.consuming.lane.Lane.refused`)."""
    reports: list[LaneReport]
    took_in: bool
    """What the slice before had left is settled."""
    client_id: int
    handler_ns: float
