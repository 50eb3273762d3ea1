"""Knows which lanes a worker declines because it has no slot for them, and how long it is busy. No I/O.

A lane is *starved* when it has had work, and has waited for a slot, for DECLINE_SECONDS. The worker then
names it in its beat, and the assignment gives the lane to a worker that is not *busy*. A busy worker gets no
more lanes, of whatever group: all share its one pool. It stays busy for a while after the last lane was
starved, or what it has passed on would come back at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from bus.format.lane_id import LaneId
from bus.format.worker_record import dump_lane

#: How long a lane with work may wait for a slot of its worker. Seconds.
DECLINE_SECONDS = 10.0
#: How long a worker stays busy, at least, after a lane was starved. Seconds. A worker that is free for a
#: moment between two long messages would take lanes back and starve them again, each time for
#: DECLINE_SECONDS. So at most a fourth of the time goes to that.
REST_SECONDS = 30.0
#: How long a busy worker waits, at least, until it looks for further lanes to decline. Seconds. With far too
#: much to do, lanes are starved one after the other, and each would cost a look.
PATIENCE_SECONDS = 1.0


class Declines:
    """The lanes that one worker declines. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._starved_at = -math.inf
        self.lanes: frozenset[LaneId] = frozenset()
        """The lanes that were starved at the last look."""
        self.busy = False
        """True if lanes were starved since this worker was last at rest."""

    def see(self, waiting: Mapping[LaneId, float], *, at_rest: bool) -> None:
        """Take in how long each lane with work has waited for a slot, in seconds.

        `at_rest`: a slot is free, and nothing waits for one.
        """
        self.lanes = frozenset(lane for lane, seconds in waiting.items() if seconds >= DECLINE_SECONDS)
        if self.lanes:
            self.busy, self._starved_at = True, self._clock()
        elif at_rest and self._clock() - self._starved_at >= REST_SECONDS:
            self.busy = False

    def next_look(self, waiting: Mapping[LaneId, float]) -> float:
        """Return the seconds until another lane is to be declined, if all wait on; infinity if none is."""
        left = [DECLINE_SECONDS - seconds for lane, seconds in waiting.items() if lane not in self.lanes]
        return max(PATIENCE_SECONDS if self.busy else 0.0, min(left, default=math.inf))

    def dump(self) -> list[str] | None:
        """Return the lanes as the beat names them, as texts; None while the worker is not busy."""
        if not self.busy:
            return None
        return sorted(map(dump_lane, self.lanes))
