"""Finds lanes that nobody holds though somebody serves them.

One look cannot tell: a lane is free for a moment whenever it changes hands. So workers watch, and each says
in its record which lanes nobody has held for long (workers.membership.unheld). A look compares this with the
leases that it sees itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bus.format.lane_id import LaneId
from bus.format.worker_record import WorkerRecord


def suspected(records: Iterable[WorkerRecord]) -> set[LaneId]:
    """Return the lanes that any worker named so at its last beat."""
    return {lane for record in records for lane in record.unheld}


def is_held(holder: str | None, workers: Collection[str]) -> bool:
    """Return whether a lease that names `holder` is held by one of the workers in the table."""
    return holder is not None and holder in workers
