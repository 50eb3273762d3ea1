"""The alarm: lanes that nobody holds though somebody serves them, whatever the cause.

A lane is free for a moment whenever it changes hands, so only watching tells. Every worker watches, by its
own clock, and says it in its record, where `bus.observe.unheld` finds it; the one that leads logs it too.
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

#: How long a lane may have no owner before that is said. Seconds. A lane that changes hands has none for
#: about a beat; that of a dead worker is not free before the worker is known to be dead.
UNHELD_SECONDS = 10.0
#: Lanes named in a record, and in a line of the log, at most: a record is read by every worker each 3 s.
MAX_NAMED = 500
_IN_LOG = 10


class Unheld:
    """The lanes that one worker has seen without owner. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._complaints = Complaints(logger, clock=clock)
        self._since: dict[LaneId, float] = {}
        self._seen_at = -math.inf

    def see(self, lanes: Iterable[LaneId]) -> None:
        """Take in a look: the lanes that somebody serves and nobody holds now."""
        now = self._clock()
        before = self._since if now - self._seen_at <= MAX_GAP else {}  # what was in between was not seen
        self._since = {lane: before.get(lane, now) for lane in lanes}
        self._seen_at = now

    def forget(self) -> None:
        """Forget what was seen: a look failed, and nobody can take anything while Redis is away."""
        self._since = {}

    def lanes(self) -> list[LaneId]:
        """Return the lanes that have been so for long, at most MAX_NAMED."""
        late = self._clock() - UNHELD_SECONDS
        return sorted(lane for lane, since in self._since.items() if since <= late)[:MAX_NAMED]

    def say(self, lanes: list[LaneId]) -> None:
        """Log these lanes, once a minute while there are any."""
        if not lanes:
            self._complaints.over("unheld")
            return
        more = f" and {len(lanes) - _IN_LOG:,} more" if len(lanes) > _IN_LOG else ""
        self._complaints.say(
            "unheld",
            "Nobody has held these lanes for %.0f s or more, though workers serve them: %s%s.",
            UNHELD_SECONDS,
            ", ".join(map(where, lanes[:_IN_LOG])),
            more,
            level=logging.ERROR,
        )
