"""Stray lanes: their lease bears the name of a live worker that does not hold them.

A lost reply, or a server that came back with older data, leaves such a lease behind. To all others the lane
is in good hands, and its worker knows nothing of it. A stray home (lane "0") is found by its worker, which
reads the leases of all homes. A stray lane of an unordered group is found by the worker that has the home: it
sees that something has been pending there for long, and cannot know whether the other worker is at it. So it
says by a hint that there may be strays, and each worker frees those that bear its name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from bus.client import Bus
from bus.format.lane_id import LaneId
from bus.format.lease import freed, owner_of
from bus.topics.registry import STRAYS
from workers.membership.leases import Leases, Swap
from workers.scheduling.scheduler import Scheduler

#: A lane is suspected when it had the same lease for so long, and something was pending. Seconds.
STRAY_SECONDS = 10.0
#: The hint is given so often at most: all workers look then. Seconds.
HINT_SECONDS = 30.0


class Strays:
    """Stray lanes of unordered groups, as one worker sees them. Only `hear` may be called from any thread."""

    def __init__(
        self,
        bus: Bus,
        me: str,
        leases: Leases,
        scheduler: Scheduler,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._me = me
        self._leases = leases
        self._scheduler = scheduler
        self._clock = clock
        self._seen: dict[LaneId, tuple[str, float]] = {}
        """Lanes that may be strays of others: the lease, and since when."""
        self._hint_at = -HINT_SECONDS
        self._heard = threading.Event()

    def hear(self) -> None:
        """Hear that some of our lanes may be strays."""
        self._heard.set()

    @property
    def heard(self) -> bool:
        """Whether there may be strays of ours. True once for each time."""
        heard = self._heard.is_set()
        self._heard.clear()
        return heard

    def suspect(self, looked_at: Iterable[LaneId], lanes: Mapping[LaneId, str]) -> None:
        """Take in what a look at these homes has found: lanes with something pending whose workers may not
        hold them, with their leases. Gives the hint if it has been so for long.
        """
        now, homes = self._clock(), set(looked_at)
        before = self._seen
        kept = {lane: seen for lane, seen in before.items() if _home(lane) not in homes}
        for lane, value in lanes.items():
            same = before.get(lane)
            kept[lane] = same if same is not None and same[0] == value else (value, now)
        self._seen = kept
        if now - self._hint_at >= HINT_SECONDS and any(
            now - since >= STRAY_SECONDS for _, since in kept.values()
        ):
            self._hint_at = now
            self._bus.registry.hint(STRAYS)

    def free(self, lanes: Iterable[LaneId]) -> list[Swap]:
        """Free those of these lanes whose leases bear our name though we do not hold them; return what went
        through. Raises BusUnavailable.
        """
        owned = self._scheduler.owned()
        values = self._leases.read(lane for lane in lanes if lane not in owned)
        # What was in hand there is in nobody's, and may have killed whoever had it.
        return self._leases.swap(
            Swap(lane, value, freed(value), suspect=True)
            for lane, value in values.items()
            if owner_of(value) == self._me
        )


def _home(lane: LaneId) -> LaneId:
    return LaneId(lane.topic, lane.partition, lane.group)
