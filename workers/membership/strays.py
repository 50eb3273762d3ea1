"""Frees stray lanes: those whose lease bears the name of a live worker that does not hold them.

A lost reply, or a server that came back with older data, leaves such a lease behind. To all others the lane
has a live owner, and that worker knows nothing of it. A stray home (lane "0") is found by its worker, which
reads the leases of all homes. A stray lane of an unordered group is found by the worker that has the home: it
sees that something has been pending there for long, but not whether the other worker handles it. So it gives
a hint that there may be strays, and each worker frees those that bear its name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from bus.client import Bus
from bus.format.lane_id import LaneId
from bus.topics.registry import STRAYS
from workers.membership.leases import Leases, Swap
from workers.scheduling.scheduler import Scheduler

#: How long a lane has the same lease, and something pending, until it is suspected. Seconds.
STRAY_SECONDS = 10.0
#: How often the hint is given at most: all workers look then. Seconds.
HINT_SECONDS = 30.0


class Strays:
    """The stray lanes of unordered groups, as one worker sees them. Only `note_hint` is for any thread."""

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
        """Lanes that may be strays of other workers → the lease, and since when it was seen."""
        self._hint_at = -HINT_SECONDS
        self._hinted = threading.Event()

    def note_hint(self) -> None:
        """Note the hint that leases which bear our name may be strays. From any thread."""
        self._hinted.set()

    def take_hint(self) -> bool:
        """Return True if there was such a hint since the last call."""
        hinted = self._hinted.is_set()
        self._hinted.clear()
        return hinted

    def suspect(self, looked_at: Iterable[LaneId], lanes: Mapping[LaneId, str]) -> None:
        """Take in a look at these homes; give the hint if a lane has been suspect for STRAY_SECONDS.

        `lanes`: the lanes with something pending whose workers may not hold them → their leases.
        """
        now, homes = self._clock(), set(looked_at)
        before = self._seen
        kept = {lane: seen for lane, seen in before.items() if _home(lane) not in homes}
        for lane, value in lanes.items():
            last = before.get(lane)
            kept[lane] = last if last is not None and last[0] == value else (value, now)
        self._seen = kept
        if now - self._hint_at >= HINT_SECONDS and any(
            now - since >= STRAY_SECONDS for _, since in kept.values()
        ):
            self._hint_at = now
            self._bus.registry.hint(STRAYS)

    def free(self, lanes: Iterable[LaneId]) -> list[Swap]:
        """Free those of these lanes whose leases bear our name though we do not hold them; return the swaps.

        Raises BusUnavailable.
        """
        owned = self._scheduler.owned()
        return self._leases.free_of((lane for lane in lanes if lane not in owned), {self._me})


def _home(lane: LaneId) -> LaneId:
    return LaneId(lane.topic, lane.partition, lane.group)
