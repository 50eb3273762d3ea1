"""Reads what is to be divided: the homes of all declared groups, and who holds them, as every worker sees it.

Nothing here depends on what this worker serves or what its code knows. Else workers would divide different
things, and a lane that each leaves to another would have no owner.

Nearly always nothing has changed. So one look is one MGET, which is packed once. What is declared is read
again after a hint, after a change of a lease, or after a while. What follows from both is computed again
only when something has changed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bus.client import Bus
from bus.format import lease
from bus.format.lane_id import LaneId
from bus.streams.connect import check
from bus.streams.wire import pack_all
from bus.topics.registry import Tables

#: How often what is declared is read again, if nothing says that it changed. Seconds.
TABLES_SECONDS = 15.0
#: Leases that one MGET reads, so that the server answers others in between.
LEASES_AN_MGET = 4_000


@dataclass(frozen=True, slots=True)
class View:
    """The result of one look. It is the same object as before if nothing changed."""

    tables: Tables
    homes: Sequence[LaneId]
    """One lane for each partition of each declared group, whatever its ordering."""
    leases: dict[LaneId, str]
    """The values of the leases of homes, and of the other lanes that were asked for, as far as they exist."""
    owners: dict[LaneId, str] = field(default_factory=dict)
    """The owner of each lease; "" if it is free."""


class Homes:
    """Reads what is to be divided, for one worker. Not thread-safe. Raises BusUnavailable."""

    def __init__(self, bus: Bus, clock: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._clock = clock
        self._tables = Tables({}, [])
        self._tables_due = -math.inf
        self._homes: list[LaneId] = []
        self._home_set: frozenset[LaneId] = frozenset()
        self._lanes: list[LaneId] = []
        self._packed, self._pages = b"", 0
        self._values: list[Any] = []
        self._view: View | None = None

    def forget(self) -> None:
        """Forget what was read: something may have changed, so the next look reads all. From any thread."""
        self._tables_due = -math.inf
        self._view = None

    def tables(self) -> Tables:
        """Return what is declared; the same object as before if nothing changed."""
        if self._clock() >= self._tables_due:
            self._tables_due = self._clock() + TABLES_SECONDS  # first: a hint meanwhile is for the next look
            tables = self._bus.registry.tables()
            if tables is not self._tables:
                self._tables, self._homes = tables, list(tables.homes())
                self._home_set = frozenset(self._homes)
        return self._tables

    def of(self, groups: Collection[tuple[str, str]]) -> list[LaneId]:
        """Return the homes of these (topic, group), by the tables that were read last."""
        return [lane for lane in self._homes if (lane.topic, lane.group) in groups]

    def look(self, others: Iterable[LaneId]) -> View:
        """Read the leases of all homes, and of these other lanes."""
        tables = self.tables()
        lanes = [*self._homes, *sorted(set(others) - self._home_set)]
        if lanes != self._lanes:
            self._lanes, self._view = lanes, None
            keys = [self._key(lane) for lane in lanes]
            starts = range(0, len(keys), LEASES_AN_MGET)
            pages = [keys[start : start + LEASES_AN_MGET] for start in starts]
            self._packed, self._pages = pack_all(("MGET", *page) for page in pages), len(pages)
        values = [value for page in self._read() for value in check(page)]
        view = self._view
        if view is None or view.tables is not tables or values != self._values:
            leases = {
                lane: lease.read(raw) for lane, raw in zip(lanes, values, strict=True) if raw is not None
            }
            owners = {lane: lease.owner_of(value) for lane, value in leases.items()}
            if values != self._values:
                self._tables_due = -math.inf  # whatever happened there, more may have
            self._values = values
            view = self._view = View(tables, self._homes, leases, owners)
        return view

    def _read(self) -> list[Any]:
        return self._bus.client.pipe_packed(self._packed, self._pages) if self._pages else []

    def _key(self, lane: LaneId) -> str:
        return self._bus.keys.partition(lane.topic, lane.partition).lease(lane.group, lane.lane)
