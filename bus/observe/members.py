"""The table of workers, and who holds a lease."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from bus.observe.snapshots import WorkerSnapshot
from bus.streams.commands import fields_of


def holder(lease: bytes | None) -> str | None:
    """The incarnation in a lease's value (`incarnation:token`); None if it is free."""
    value = lease.decode() if lease else ""
    return None if value.startswith("free:") else value.rpartition(":")[0] or None


def workers(table: Any, lanes: Mapping[str, int]) -> tuple[WorkerSnapshot, ...]:
    """Snapshots from the reply to HGETALL; `lanes`: incarnation → leases held."""
    return tuple(
        _worker(incarnation, orjson.loads(raw), lanes.get(incarnation, 0))
        for incarnation, raw in sorted(fields_of(table).items())
    )


def serving(members: tuple[WorkerSnapshot, ...], group: str) -> int:
    """How many of the workers serve a group."""
    return sum(1 for member in members if member.groups is None or group in member.groups)


def _worker(incarnation: str, known: dict[str, Any], lanes: int) -> WorkerSnapshot:
    groups = known["groups"]
    return WorkerSnapshot(
        incarnation=incarnation,
        host=known["host"],
        pid=known["pid"],
        started=datetime.fromtimestamp(known["started"] / 1000, UTC),
        beat=known["beat"],
        groups=None if groups is None else tuple(groups),
        processes=known["processes"],
        lanes=lanes,
    )
