"""The queue of lanes that are ready: they wait for a slot, first come, first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from bus.format.lane_id import LaneId
from workers.scheduling.owned import OwnedLane


class Ready:
    """The queue of one worker. Every method is called under the scheduler's lock."""

    def __init__(self, lanes: Mapping[LaneId, OwnedLane], clock: Callable[[], float]) -> None:
        """`lanes`: all that the worker owns, as they come and go."""
        self._lanes = lanes
        self._clock = clock
        self._queue: deque[LaneId] = deque()
        """All that are ready, among them some that are not any more. Mostly empty."""
        self._paused: frozenset[tuple[str, str]] = frozenset()

    def __len__(self) -> int:
        return len(self._queue)

    def pause(self, groups: Iterable[tuple[str, str]]) -> None:
        """Have lanes of these (topic, group) wait for their group, not for a slot."""
        before, self._paused = self._paused, frozenset(groups)
        for lane in self._lanes.values():
            if lane.stage == "ready" and (lane.id.topic, lane.id.group) in before - self._paused:
                lane.since = self._clock()  # until now it waited for its group, not for a slot

    def make(self, lane: OwnedLane, *, first: bool = False) -> None:
        """Make this lane ready; `first`: before all others."""
        lane.wait_for_slot(self._clock())
        if first:
            self._queue.appendleft(lane.id)
        else:
            self._queue.append(lane.id)

    def pop(self) -> OwnedLane | None:
        """Return the next to get a slot. Its stage is left as it is."""
        for _ in range(len(self._queue)):
            lane = self._lanes.get(self._queue.popleft())
            if lane is None or lane.stage != "ready":
                continue
            if not self._is_paused(lane):
                return lane
            self._queue.append(lane.id)
        return None

    def take(self, lane: OwnedLane) -> None:
        """Take it along with another lane of its group, before it is at the head of the queue."""
        if lane.stage == "ready" and lane.id in self._queue:
            self._queue.remove(lane.id)  # a stale entry would only pile up

    def waiting(self) -> Iterator[OwnedLane]:
        """Return the lanes that wait for a slot."""
        lanes = (self._lanes.get(id) for id in self._queue)
        return (lane for lane in lanes if lane and lane.stage == "ready" and not self._is_paused(lane))

    def is_anyone_waiting(self) -> bool:
        return any(self.waiting())

    def _is_paused(self, lane: OwnedLane) -> bool:
        return (lane.id.topic, lane.id.group) in self._paused
