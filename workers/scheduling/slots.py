"""The slots of one worker's pool: which slices run, and what shared memory says of them. No I/O.

A slot is a place in shared memory for one slice. One whose slice Celery has dropped, but whose process may
still be at it, is kept apart until the process has reported, or must have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from bus.format.lane_id import LaneId
from workers.progress import Progress
from workers.scheduling.owned import Running
from workers.slot_view import SlotView

#: A slice over several lanes that is this long in one message must give the others back. Seconds.
STUCK_SECONDS = 0.1
#: A slice over several lanes that is busy for so long while another slot is free shares them. Seconds.
BUSY_SECONDS = 0.3
#: How long a slot is kept apart whose slice Celery has dropped. Seconds.
QUARANTINE_SECONDS = 60.0


class Slots:
    """Slots in use, free and kept apart. Not thread-safe: its scheduler takes the lock."""

    def __init__(self, progress: Progress, capacity: int, clock: Callable[[], float]) -> None:
        """`capacity`: slices that may run at once; `progress` has some slots more, to spare."""
        self._progress = progress
        self._capacity = capacity
        self._clock = clock
        self._free = list(range(progress.slots))
        self._quarantine: dict[int, float] = {}
        self.running: dict[int, Running] = {}

    def room(self) -> int:
        """Return how many more slices may run."""
        now = self._clock()
        for slot, until in list(self._quarantine.items()):
            if until <= now or self._progress.read(slot).reports:
                del self._quarantine[slot]
                self._free.append(slot)
        return min(self._capacity - len(self.running), len(self._free))

    def unheard(self, *, unbegun: bool) -> Iterator[tuple[Running, SlotView, bool]]:
        """Yield slices that are over, as far as shared memory and the system say; True if their process died.

        `unbegun`: also those that no process has begun.
        """
        for slot, running in self.running.items():
            view = self._progress.read(slot)
            died = view.pid != 0 and not view.reports and _is_gone(view.pid)
            if view.reports or died or (unbegun and view.pid == 0):
                yield running, view, died

    def take(self) -> int:
        """Take a free slot, with nothing left of the slice before."""
        slot = self._free.pop()
        self._progress.clear(slot)
        return slot

    def give_back(self, slot: int) -> tuple[Running, SlotView]:
        """Free the slot of a slice that has ended. Return what it was, and what it left."""
        self._free.append(slot)
        return self.running.pop(slot), self._progress.read(slot)

    def keep_apart(self, slot: int) -> tuple[Running, SlotView]:
        """Use this slot no more for a while: a process may still run its slice, and is told to stop."""
        self._progress.revoke(slot)
        self._quarantine[slot] = self._clock() + QUARANTINE_SECONDS
        return self.running.pop(slot), self._progress.read(slot)

    def hurry(self) -> None:
        """Have slices that run empty not linger: lanes wait."""
        for slot in self.running:
            self._progress.want(slot)

    def lingering(self) -> list[int]:
        """Return the connection ids of slices that wait for more."""
        clients = [self._progress.read(slot).client_id for slot in self.running]
        return [client for client in clients if client]

    def share_out(self) -> None:
        """Have busy slices over several lanes end, to share them, if a slot is free. No lane is ready."""
        if len(self.running) >= self._capacity:
            return
        for slot, running in self.running.items():
            busy = self._clock() - running.began > BUSY_SECONDS and not self._progress.read(slot).client_id
            if busy and len(running.lanes) > 1:
                self._progress.want(slot)

    def overdue(self, limit_of: Callable[[LaneId], float | None]) -> list[int]:
        """Return the slots in which one message runs longer than the hard time limit of its subscription."""
        slots = []
        for slot, running in self.running.items():
            now_running = self._progress.read(slot).running
            if now_running is None:
                continue
            limit = limit_of(running.lanes[now_running.lane_index].id)
            if limit is not None and self._clock() - now_running.since > limit:
                slots.append(slot)
        return slots

    def stuck(self) -> Iterator[tuple[Running, SlotView, int]]:
        """Yield slices over several lanes that stick in one message, with the index of its lane.

        At the first look the slot is revoked; if a later look finds it in the same message still, the
        child will see the mark before its next one, so its other lanes can be given to somebody else.
        """
        for slot, running in self.running.items():
            view = self._progress.read(slot) if len(running.lanes) > 1 else None
            if view is None or view.running is None:
                continue
            if self._clock() - view.running.since < STUCK_SECONDS:
                continue
            place = (view.running.lane_index, view.running.id)
            if not running.revoked:
                self._progress.revoke(slot)
                running.revoked, running.stuck_in = True, place
            elif running.stuck_in != place:
                running.stuck_in = place  # begun before the child could see the mark
            else:
                yield running, view, place[0]

    def revoke(self, lanes_of: Callable[[Running], bool]) -> None:
        """Tell the slices that this is true of to stop before their next message."""
        for slot, running in self.running.items():
            if lanes_of(running):
                self._progress.revoke(slot)


def _is_gone(pid: int) -> bool:
    """Return whether a process of our pool has ended, also where nobody has taken note of that yet."""
    if pid == os.getpid():
        return False  # a thread of the threads pool
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
