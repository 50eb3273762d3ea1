"""Which lanes have work, in what fair order, and which slices that makes. No I/O, no Celery.

    watched ──news, due retry──▶ ready ──a slot is free──▶ running ──its end──▶ watched | ready | given up

Lanes that are ready wait in a queue, first come, first served. While a group's handler takes under a
millisecond a slice takes the free slot's share of all its lanes, which spares a turn for each; when it
is slower one slice takes one lane, so that no lane waits behind another's message. If a slice over
several lanes sticks in one message its other lanes are taken back.

Called from several threads (keeper, watcher, the main loop), so every public method takes the lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from bus.consuming.lane_state import LaneState
from bus.format.lane_id import ORDERED_LANE, LaneId
from bus.values import Ordering
from workers.order import MAX_LANES, Report, SliceOrder
from workers.progress import Progress
from workers.scheduling.owned import BACKOFF, Ended, OwnedLane, Running
from workers.scheduling.ready import Ready
from workers.scheduling.slots import Slots
from workers.slot_view import SlotView

#: A group is fast, and its slices take several lanes, while its mean handler time is below this. Seconds.
FAST_SECONDS = 0.001


class Scheduler:
    """The lanes of one worker and its slices."""

    def __init__(
        self, progress: Progress, slots: int, nonce: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._nonce = nonce
        self._clock = clock
        self._lock = threading.RLock()
        self._lanes: dict[LaneId, OwnedLane] = {}
        self._ready = Ready(self._lanes, clock)
        self._taken: dict[LaneId, None] = {}
        """Lanes that were taken back, in that order, among them some that are not any more."""
        self._slots = Slots(progress, slots, clock)
        self._mean: dict[tuple[str, str], float] = {}
        self.stopped = False
        self.standing = False
        """The main loop stands still: no slice is started, and the end of none is heard."""

    # ------------------------------------------------------------------ lanes come and go

    def add(
        self,
        id: LaneId,
        lease: str,
        ordering: Ordering,
        *,
        drain_only: bool = False,
        position: str | None = None,
    ) -> None:
        """Add a lane that was acquired. It is ready at once, to look for left-overs.

        `position`: of its group, where surely nothing is pending or ahead; then it waits for news.
        """
        with self._lock:
            state = LaneState(id, lease, ordering, drain_only=drain_only)
            lane = self._lanes[id] = OwnedLane(state, since=self._clock())
            if position is None:
                self._ready.make(lane)
            else:
                lane.watch_from(position)

    def leave(self, id: LaneId) -> bool:
        """Give a lane up: True if that is possible now, else it is reported when its slice ends."""
        with self._lock:
            lane = self._lanes.get(id)
            if lane is None:
                return False
            if lane.stage == "running":
                lane.leaving = True
                return False
            lane.give_up()
            return True

    def given_up(self) -> list[OwnedLane]:
        """Return the lanes that are given up. They are ours until `given_back`, when what their slices have
        left is settled: else somebody would free or take their leases before."""
        with self._lock:
            return [lane for lane in self._lanes.values() if lane.stage == "given up"]

    def given_back(self, lanes: Iterable[OwnedLane]) -> None:
        """Forget these lanes, whose leases are not ours any more."""
        with self._lock:
            for lane in lanes:
                if self._lanes.get(lane.id) is lane:
                    self._remove(lane)

    def give_up_unheard(self) -> None:
        """Give up lanes of slices that are over, though the main loop does not hear of it. While it stands
        still also those of slices that no process has begun: their leases stop them."""
        with self._lock:
            for running, view, died in self._slots.unheard(unbegun=self.standing):
                for lane in self._still_ours(running):
                    index = running.lanes.index(lane)
                    if died:
                        lane.fallen = lane.left(view, index, "worker lost")
                    elif view.reports:
                        lane.hear(view, index)
                    lane.give_up()

    def stay(self, id: LaneId) -> None:
        """Do not give this lane up after all."""
        with self._lock:
            if id in self._lanes:
                self._lanes[id].leaving = False

    def lost(self, id: LaneId) -> OwnedLane | None:
        """Forget a lane that another worker has now, and return it. What still runs there is fenced off."""
        with self._lock:
            lane = self._lanes.get(id)
            if lane is None:
                return None
            # Or a slice would run messages that are somebody else's now.
            self._slots.revoke(lambda running: any(its_lane is lane for its_lane in running.lanes))
            return self._remove(lane)

    def renew(self, id: LaneId, old: str, new: str) -> None:
        """Work again on a lane that was taken back from a stuck slice, and has a new lease."""
        with self._lock:
            lane = self._lanes.get(id)
            if lane is not None and lane.state.lease == old:
                lane.renew(new)
                if lane.stage == "taken back":
                    self._ready.make(lane)

    def owned(self) -> dict[LaneId, str]:
        """Return the lanes, with the lease values under which they are held."""
        with self._lock:
            return {id: lane.state.lease for id, lane in self._lanes.items()}

    def pause(self, groups: Iterable[tuple[str, str]]) -> None:
        """Have lanes of these (topic, group) get no new slices."""
        with self._lock:
            self._ready.pause(groups)

    def order_by(self, declared: Mapping[tuple[str, str], Ordering]) -> None:
        """Have lanes that work by another ordering than the declared one fetch nothing new.

        `declared`: (topic, group) → ordering.
        """
        with self._lock:
            for lane in self._lanes.values():
                if lane.close_or_open(declared) and lane.stage == "watched":
                    self._ready.make(lane)

    # ------------------------------------------------------------------ work is found

    def watched(self) -> dict[LaneId, str]:
        """Return the idle lanes, each with the id after which a message would be news."""
        with self._lock:
            lanes = [(id, lane.news_after()) for id, lane in self._lanes.items() if lane.stage == "watched"]
            return {id: last_id for id, last_id in lanes if last_id is not None}

    def wake(self, ids: Iterable[LaneId]) -> bool:
        """Wake these lanes, which have news; True if any became ready."""
        with self._lock:
            woken = False
            for id in ids:
                lane = self._lanes.get(id)
                if lane is None:
                    continue
                if lane.stage == "running":
                    lane.news = True
                elif lane.stage == "watched":
                    self._ready.make(lane)
                    woken = True
            return woken

    def doubt(self) -> None:
        """Have all lanes ask anew: after a lost connection the server may have come back with older data."""
        with self._lock:
            for lane in self._lanes.values():
                lane.doubt()
                if lane.stage == "watched":
                    self._ready.make(lane)

    def wake_due(self) -> bool:
        """Make lanes ready whose retry is due or whose back-off is over; True if there were any."""
        with self._lock:
            now, woken = self._clock(), False
            for lane in self._lanes.values():
                if lane.stage in ("watched", "backing off") and lane.due is not None and lane.due <= now:
                    self._ready.make(lane)
                    woken = True
            return woken

    def next_due(self) -> float | None:
        """Return when wake_due will next find something, by the monotonic clock."""
        with self._lock:
            dues = [
                lane.due
                for lane in self._lanes.values()
                if lane.due is not None and lane.stage in ("watched", "backing off")
            ]
            return min(dues, default=None)

    def waiting(self) -> dict[LaneId, float]:
        """Return the ordered lanes that have work and wait for a slot, each with how long it has. Seconds."""
        with self._lock:
            return {
                lane.id: self._clock() - lane.since
                for lane in self._ready.waiting()
                if lane.id.lane == ORDERED_LANE
            }

    def is_at_rest(self) -> bool:
        """Return whether no lane waits for a slot, and a slot is free, or its slice lingers."""
        with self._lock:
            return not self._ready.is_anyone_waiting() and bool(
                self._slots.room() > 0 or self._slots.lingering()
            )

    # ------------------------------------------------------------------ slices

    def next_slices(self, free: int) -> list[SliceOrder]:
        """Return the next slices, for so many free processes. Start each, or report it by `ended`."""
        with self._lock:
            orders: list[SliceOrder] = []
            free = min(free, self._slots.room())
            while not (self.stopped or self.standing) and len(orders) < free:
                lanes = self._next_lanes(free - len(orders))
                if not lanes:
                    break
                orders.append(self._start(lanes))
            if self._ready.is_anyone_waiting():
                self._slots.hurry()
            return orders

    def _next_lanes(self, free: int) -> list[OwnedLane]:
        first = self._ready.pop()
        if first is None:
            return []
        group = (first.id.topic, first.id.group)
        mean = self._mean.get(group)
        if mean is None or mean >= FAST_SECONDS or first.ordering == "none":
            return [first]
        mates = [lane for lane in self._lanes.values() if (lane.id.topic, lane.id.group) == group]
        others = [
            lane
            for lane in mates
            if lane is not first
            and lane.stage in ("ready", "watched")
            and lane.state.ordering == first.ordering
            and not lane.leaving
        ]
        ready = sorted((lane for lane in others if lane.stage == "ready"), key=lambda lane: lane.since)
        idle = [lane for lane in others if lane.stage == "watched"]
        # Its share of all lanes of the group, also of those that other slots work on: they come back. Lanes
        # with work are dealt out evenly first.
        share = min(MAX_LANES, -(-len(mates) // max(1, free + len(self._slots.running))))
        with_work = ready[: -(-(len(ready) + 1) // max(1, free)) - 1]
        return [first, *[*with_work, *idle][: share - 1]]

    def _start(self, lanes: list[OwnedLane]) -> SliceOrder:
        slot, now = self._slots.take(), self._clock()
        orders = []
        for lane in lanes:
            self._ready.take(lane)
            orders.append(lane.run(now))
        mean = self._mean.get((lanes[0].id.topic, lanes[0].id.group))
        order = SliceOrder(self._nonce, slot, tuple(orders), mean)
        self._slots.running[slot] = Running(order, lanes, now)
        return order

    def dropped(self, slot: int, reason: str) -> None:
        """Keep apart a slice that Celery dropped, and that a process may still run: it is told to stop.

        Its lanes wait for new leases. The slot is used again when the process has reported, or after
        QUARANTINE_SECONDS, when a message that was on its way to a process must have arrived.
        """
        with self._lock:
            running, view = self._slots.keep_apart(slot)
            ours = {id(lane) for lane in self._still_ours(running)}
            for index, lane in enumerate(running.lanes):
                if id(lane) in ours:
                    before = None if view.took_in else lane.fallen
                    lane.take_back(lane.left(view, index, reason) if reason else before)
                    self._taken[lane.id] = None

    def ended(self, slot: int, *, died: str | None = None) -> Ended:
        """Take in the end of a slice; `died`: why, if its process was lost with it."""
        with self._lock:
            running, view = self._slots.give_back(slot)
            group = (running.order.lanes[0].id.topic, running.order.lanes[0].id.group)
            if view.handler_ns:
                self._mean[group] = view.handler_ns / 1e9
            ended = Ended()
            ours = {id(lane) for lane in self._still_ours(running)}
            for index, lane in enumerate(running.lanes):
                if id(lane) not in ours:
                    continue
                if died is not None:
                    lane.died(lane.left(view, index, died))
                    self._ready.make(lane, first=True)
                else:
                    self._reported(lane, view, index, ended)
                if lane.leaving and lane.id in self._lanes:
                    lane.give_up()
                    ended.free.append(lane)
            return ended

    def _still_ours(self, running: Running) -> list[OwnedLane]:
        """Return the lanes of a slice that were not lost or taken back while it ran."""
        return [
            lane
            for lane, order in zip(running.lanes, running.order.lanes, strict=True)
            if self._lanes.get(lane.id) is lane
            and lane.state.lease == order.state.lease
            and lane.stage == "running"
        ]

    def _reported(self, lane: OwnedLane, view: SlotView, index: int, ended: Ended) -> None:
        flags = lane.hear(view, index)
        if flags & Report.LOST:
            ended.lost.append(self._remove(lane))
            return
        doubted, lane.doubted = lane.doubted, False
        if flags & (Report.TROUBLE | Report.BROKEN | Report.GONE):
            ended.gone = ended.gone or bool(flags & Report.GONE)
            if flags & Report.BROKEN:
                ended.broken.append(lane)
            lane.back_off(self._clock())
            return
        if doubted:
            self._ready.make(lane)
            lane.doubt()
        elif lane.state.drain_only and not lane.state.recover:
            lane.leaving = True
        elif flags & Report.MORE or lane.news:
            self._ready.make(lane)
        else:
            lane.watch(self._clock())

    # ------------------------------------------------------------------ stuck slices

    def taken_back(self) -> list[OwnedLane]:
        """Return the lanes that need a new lease, then `renew`: a process may still work under the old one.
        They are of slices that Celery dropped, and the other lanes of a slice that sticks in one message."""
        with self._lock:
            if self.stopped:
                return []  # what runs settles by itself, unless it has new leases
            for running, view, stuck in self._slots.stuck():
                self._take_back(running, view, stuck)
            return self._not_renewed()

    def _not_renewed(self) -> list[OwnedLane]:
        """Return the lanes that were taken back and have no new lease; again after a while."""
        late = self._clock() - BACKOFF.max_delay  # if Redis was away, they are still here
        taken = [lane for id in self._taken if (lane := self._lanes.get(id)) and lane.stage == "taken back"]
        self._taken = dict.fromkeys(lane.id for lane in taken)
        lanes = [lane for lane in taken if lane.since <= late]
        for lane in lanes:
            lane.since = self._clock()
        return lanes

    def _take_back(self, running: Running, view: SlotView, stuck: int) -> None:
        ours = {id(lane) for lane in self._still_ours(running)}
        for index, lane in enumerate(running.lanes):
            if index != stuck and id(lane) in ours and not lane.leaving:
                lane.take_back(lane.left(view, index, ""))
                self._taken[lane.id] = None

    def share_out(self) -> None:
        """Have lanes dealt out anew where a slot is free and another slice has several that are busy."""
        with self._lock:
            if not self._ready.is_anyone_waiting():
                self._slots.share_out()

    def lingering(self) -> list[int]:
        """Return the connection ids of slices that wait for more while another lane wants their slot."""
        with self._lock:
            return self._slots.lingering() if self._ready.is_anyone_waiting() else []

    def overdue(self, limit_of: Callable[[LaneId], float | None]) -> list[int]:
        """Return the slots in which one message runs longer than the hard time limit of its subscription."""
        with self._lock:
            return self._slots.overdue(limit_of)

    # ------------------------------------------------------------------ inner

    def _remove(self, lane: OwnedLane) -> OwnedLane:
        self._lanes.pop(lane.id, None)
        return lane
