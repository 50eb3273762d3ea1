"""The lanes that a worker declines, having no slot for them: when that begins and when it ends. No I/O.

A lane is *starved* when it has had work, and waited for a slot, for DECLINE_SECONDS. The worker then says
so in its beat, and the assignment gives the lane to a worker that is not *busy*: that declines nothing.
A busy worker gets no lanes more, whatever their group: all of them share its one pool.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from bus.lane import LaneId

#: How long a lane with work may wait for a slot of its worker. Seconds.
DECLINE_SECONDS = 10.0
#: How long a worker is busy at least after a lane was starved last. Seconds. A worker that is free for a
#: moment between two long messages would take lanes back and starve them again, each time for
#: DECLINE_SECONDS; so at most a fourth of the time goes to that.
REST_SECONDS = 30.0


class Declines:
    """What one worker declines. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._starved_at = -math.inf
        self.lanes: frozenset[LaneId] = frozenset()
        """The lanes that were starved since this worker was at rest last; empty: it is not busy."""

    def see(self, waiting: Mapping[LaneId, float], *, at_rest: bool) -> None:
        """Take in how it stands: lane → how long it has waited for a slot, in seconds.

        `at_rest`: a slot is free, and nothing waits for one.
        """
        starved = {lane for lane, seconds in waiting.items() if seconds >= DECLINE_SECONDS}
        if starved:
            self._starved_at = self._clock()
            self.lanes |= starved
        elif at_rest and self._clock() - self._starved_at >= REST_SECONDS:
            self.lanes = frozenset()

    def next_look(self, waiting: Mapping[LaneId, float]) -> float:
        """Seconds until there is a lane more to decline, if all wait on; infinity if there is none."""
        left = [DECLINE_SECONDS - seconds for lane, seconds in waiting.items() if lane not in self.lanes]
        return max(0.0, min(left, default=math.inf))


def to_text(lane: LaneId) -> str:
    """An ordered lane as it stands in a beat; no name of a topic or group has a slash in it."""
    return f"{lane.topic}/{lane.partition}/{lane.group}"


def from_text(text: str) -> LaneId:
    """The reverse of `to_text`. Raises ValueError for anything else."""
    topic, partition, group = text.split("/")
    return LaneId(topic, int(partition), group)
