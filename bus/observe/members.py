"""Reads who is in the table of workers, and who holds a lease."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from bus.format import lease as leases
from bus.format.worker_record import WorkerRecord
from bus.observe.snapshots import WorkerSnapshot


def holder(lease: Any) -> str | None:
    """Return the incarnation in the value of a lease, as it was read; None if it is free or missing."""
    return leases.owner_of(leases.read(lease)) or None


def workers(records: Mapping[str, WorkerRecord], lanes: Mapping[str, int]) -> tuple[WorkerSnapshot, ...]:
    """Return snapshots of the workers in the table; `lanes`: incarnation → leases held."""
    return tuple(_worker(record, lanes.get(name, 0)) for name, record in sorted(records.items()))


def serving(records: Iterable[WorkerRecord], topic: str, group: str) -> int:
    """Return how many of the workers serve a group."""
    return sum(1 for record in records if record.serves_group(topic, group))


def _worker(record: WorkerRecord, lanes: int) -> WorkerSnapshot:
    return WorkerSnapshot(
        incarnation=record.incarnation,
        host=record.host,
        pid=record.pid,
        started=datetime.fromtimestamp(record.started / 1000, UTC),
        beat=record.beat,
        groups=record.groups,
        processes=record.processes,
        lanes=lanes,
        serves=None if record.serves is None else tuple(sorted(record.serves)),
    )
