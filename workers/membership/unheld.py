"""Gives the alarm about lanes that no worker holds though some worker serves them, whatever the cause.

A lane is free for a moment whenever it changes hands, so only watching tells. Every worker watches, by its
own clock, and names such lanes in its record, where `bus.observe.unheld` finds them. The one that leads logs
them too.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable

from bus.format.lane_id import LaneId
from bus.format.worker_record import where
from bus.safety.complaints import Complaints
from workers.liveness import MAX_GAP

logger = logging.getLogger("jitney.workers")

#: How long a lane may have no owner before the alarm. Seconds. A lane that changes hands has none for about a
#: beat; that of a dead worker is not free before the worker is known to be dead.
UNHELD_SECONDS = 10.0
#: Lanes that a record names at most: every worker reads it each 3 s.
MAX_NAMED = 500
#: Lanes that a line of the log names at most.
_MAX_LOGGED = 10


class Unheld:
    """The lanes that one worker has seen without owner. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._complaints = Complaints(logger, clock=clock)
        self._since: dict[LaneId, float] = {}
        self._seen_at = -math.inf

    def see(self, lanes: Iterable[LaneId]) -> None:
        """Take in a look: the lanes that some worker serves and none holds now."""
        now = self._clock()
        before = self._since if now - self._seen_at <= MAX_GAP else {}  # what was in between was not seen
        self._since = {lane: before.get(lane, now) for lane in lanes}
        self._seen_at = now

    def forget(self) -> None:
        """Forget what was seen: no worker can take lanes while Redis is away."""
        self._since = {}

    def lanes(self) -> list[LaneId]:
        """Return the lanes that have had no owner for UNHELD_SECONDS, at most MAX_NAMED."""
        late = self._clock() - UNHELD_SECONDS
        return sorted(lane for lane, since in self._since.items() if since <= late)[:MAX_NAMED]

    def complain(self, lanes: list[LaneId]) -> None:
        """Log these lanes, once a minute while there are any."""
        if not lanes:
            self._complaints.over("unheld")
            return
        more = f" and {len(lanes) - _MAX_LOGGED:,} more" if len(lanes) > _MAX_LOGGED else ""
        self._complaints.say(
            "unheld",
            "Nobody has held these lanes for %.0f s or more, though workers serve them: %s%s.",
            UNHELD_SECONDS,
            ", ".join(map(where, lanes[:_MAX_LOGGED])),
            more,
            level=logging.ERROR,
        )
