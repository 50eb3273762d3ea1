"""Keeps this worker's beat and its leases, in a thread.

The thread has connections of its own, so that a busy main loop never makes a worker look dead. There is no
coordinator: every worker computes the same assignment from the same tables, acquires free lanes that
should be its own by compare-and-set, and gives up, after the running slice, those that should not.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterable

from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.errors import BusError, BusUnavailable, is_away
from bus.format.lane_id import ORDERED_LANE, LaneId
from bus.format.lease import freed
from bus.safety.complaints import Complaints
from workers.membership.declines import Declines
from workers.membership.departures import Departures
from workers.membership.division import Division
from workers.membership.homes import Homes, View
from workers.membership.identity import Identity
from workers.membership.leases import Leases, Swap
from workers.membership.orderings import Orderings
from workers.membership.orphans import Orphans
from workers.membership.roster import Roster
from workers.membership.served import ServedGroups
from workers.membership.strays import Strays
from workers.membership.sweep import Sweep
from workers.membership.unheld import Unheld
from workers.scheduling.owned import OwnedLane
from workers.scheduling.scheduler import Scheduler

logger = logging.getLogger("jitney.workers")


class Keeper(threading.Thread):
    """The thread that keeps one worker's beat and leases."""

    def __init__(
        self,
        bus: Bus,
        identity: Identity,
        subscriptions: Iterable[Subscription],
        scheduler: Scheduler,
        *,
        slots: int,
        processes: int,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_change`: called in this thread after lanes came, went or were paused."""
        super().__init__(name="jitney-membership", daemon=True)
        self._bus = bus
        self._me = identity.incarnation
        self._scheduler = scheduler
        self._slots = slots
        self._on_change = on_change
        self._clock = clock
        subscriptions = list(subscriptions)
        self._roster = Roster(bus, identity, subscriptions, processes, clock)
        self._leases = Leases(bus, identity.incarnation)
        self._homes = Homes(bus, clock)
        self._served = ServedGroups(bus, subscriptions, self._homes, clock)
        self._orderings = Orderings(bus, self._leases, scheduler)
        self.strays = Strays(bus, self._me, self._leases, scheduler, clock)
        around = self._roster, self._leases, self._orderings, self.strays
        self._orphans = Orphans(bus, self._me, *around, scheduler, clock)
        self._sweep = Sweep(bus, self._roster, self._leases, clock)
        self._unheld = Unheld(clock)
        self._division = Division(self._me, self._roster)
        self._departures = Departures(self._leases, scheduler)
        self._declines = Declines(clock)
        self._errands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._is_leaving = False
        self._complaints = Complaints(logger, clock=clock)
        self.heard_at = clock()
        """When this thread last went round its loop, by the monotonic clock."""

    @property
    def leads(self) -> bool:
        """Return whether this worker does the upkeep."""
        return self._roster.leader == self._me

    # ------------------------------------------------------------------ for other threads

    def look(self) -> None:
        """Look at the tables now instead of at the next beat."""
        self._homes.forget()
        self._errands.put(None)

    def stop(self) -> None:
        self._stopping.set()
        self.look()

    def release(self) -> None:
        """Give back the lanes that are given up, as an errand of the thread."""
        self._errands.put(self._departures.give_back)

    def renew(self, lane: OwnedLane) -> None:
        """Get a new lease for a lane that was taken back from a stuck slice, as an errand of the thread."""
        old, new = lane.lease, self._leases.new_value()

        def work() -> None:
            if self._leases.renew(lane, new):
                self._scheduler.renew(lane.id, old, new)
            elif self._scheduler.owned().get(lane.id) == old:
                self._scheduler.lost(lane.id)
            self._on_change()

        self._errands.put(work)

    def repair(self) -> None:
        """Declare our groups again: streams or groups are gone."""
        self._served.declare_again()
        self.look()

    def unblock(self, clients: Iterable[int]) -> None:
        """End the lingering of slices whose slots are needed, as an errand of the thread."""
        unblocks = [("CLIENT", "UNBLOCK", client) for client in clients]

        def work() -> None:
            self._bus.client.pipe(unblocks)

        self._errands.put(work)

    # ------------------------------------------------------------------ the thread

    def run(self) -> None:
        next_look = self._clock()
        while not self._stopping.is_set():
            self.heard_at = self._clock()
            try:
                work = self._errands.get(timeout=max(0.0, next_look - self._clock()))
            except queue.Empty:
                work = None
            if work is not None:
                self._attempt(work)
                if self._clock() < next_look:
                    continue  # however many errands there are, the beat comes first when it is due
            if self._stopping.is_set():
                break  # only now: an errand that was taken from the queue is done, or a lane would stay ours
            looked = self._attempt(self._look)
            next_look = self._clock() + (self._next_look() if looked else random.uniform(0.3, 1.0))

    def leave(self) -> None:
        """Give everything back: the pool and this thread have ended."""
        while not self._errands.empty():
            if (work := self._errands.get()) is not None:
                self._attempt(work)
        lanes = [lane for id in self._scheduler.owned() if (lane := self._scheduler.lost(id)) is not None]
        try:
            self._leases.give_back(lanes)
            self._roster.leave()
        except BusError as error:
            logger.warning("The worker could not give its lanes back; others take them over: %s", error)

    def _attempt(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except BusError as error:
            if isinstance(error, BusUnavailable):
                self._roster.observe_anew()
            if is_away(error):
                self._unheld.forget()
            self._complaints.say(
                type(error).__name__,
                "The worker cannot look after its leases now and goes on trying: %s",
                error,
            )
        except Exception as error:
            # A thread that ends would end the worker; and what is wrong with one thing is not with others.
            self._complaints.say(
                (type(error), traceback.extract_tb(error.__traceback__)[-1][:2]),
                "A fault in Jitney: the worker goes on looking after its leases, as far as it can.",
                level=logging.ERROR,
                exc_info=error,
            )
        else:
            self._complaints.over(BusUnavailable.__name__)
            return True
        self._homes.forget()
        return False

    def _next_look(self) -> float:
        return min(self._roster.next_look(), self._declines.next_look(self._scheduler.waiting()))

    def _look(self) -> None:
        unheld = self._unheld.lanes()
        try:
            self._look_after_lanes(unheld)
        except Exception as error:
            if not is_away(error):
                self._watch(unheld)
            raise

    def _watch(self, unheld: list[LaneId]) -> None:
        """See which lanes nobody holds though the look failed: if each fails, people hear of it by this."""
        self._division.update(self._homes.look(self._scheduler.owned()))
        self._unheld.see(self._division.unheld)
        if self.leads:
            self._unheld.complain(unheld)

    def _look_after_lanes(self, unheld: list[LaneId]) -> None:
        leaving = self._scheduler.stopped or self._scheduler.standing
        self._is_leaving = self._is_leaving and leaving
        self._decline()
        self._roster.beat(leaving=leaving, declines=self._declines.dump(), unheld=unheld)
        self._take_in_what_is_declared()
        slot_lanes = self._slot_lanes()
        owned = self._scheduler.owned()
        view = self._homes.look([*owned, *slot_lanes])
        self._bury(view)
        # First: what is lost must not be given up as if it were ours, without a word.
        self._drop_lost(view, owned)
        self._division.update(view)
        self._unheld.see(self._division.unheld)
        assigned = self._division.assigned
        self._give_up(assigned)
        self._free_strays(view, assigned)
        if leaving:
            self._say_leaving()
        else:
            self._acquire(assigned, view)
            self._tend_unordered(slot_lanes, view)
            self._orphans.tend(assigned)
            if self.strays.take_hint():
                self._orphans.free_strays()
            self._orderings.change()
        if self.leads:
            self._unheld.complain(unheld)
            self._sweep.step(view.tables)
        self._on_change()

    def _take_in_what_is_declared(self) -> None:
        """Take in which groups there are, which are paused, and by which orderings they go."""
        tables = self._served.tables()
        self._scheduler.pause((group.topic, group.name) for group in tables.groups if group.paused)
        self._orderings.refresh(tables, lambda: self._homes.of(self._served.names))

    # ------------------------------------------------------------------ ordered lanes

    def _bury(self, view: View) -> None:
        """Free the lanes of workers that are gone, and remove the records of these workers.

        A worker that was taken for dead and comes back finds its leases changed, and writes its record again.
        """
        gone = self._roster.gone
        if not gone:
            return
        leases = view.leases
        theirs = [lane for lane, owner in view.owners.items() if owner in gone and lane.lane == ORDERED_LANE]
        swapped = self._leases.swap(
            Swap(lane, leases[lane], freed(leases[lane]), suspect=True) for lane in theirs
        )
        for swap in swapped:
            view.leases[swap.lane], view.owners[swap.lane] = swap.new, ""
        changed = [swapped, self._orphans.bury(gone), self._roster.strike_off()]
        # Only where something changed: whoever sees a hint looks again, and would hint again.
        if any(changed):
            self._homes.forget()
            logger.warning("Workers that are gone: %s. Their lanes are taken over.", ", ".join(sorted(gone)))
            self._bus.registry.hint("release")

    def _decline(self) -> None:
        """Find the lanes that wait for a slot in vain. The beat names them, and other workers take them."""
        before = self._declines.busy
        self._declines.see(self._scheduler.waiting(), at_rest=self._scheduler.is_at_rest())
        if self._declines.busy and not before:
            logger.info("All slots are busy: lanes with work go to workers that have one free, if any.")
        elif before and not self._declines.busy:
            logger.info("There are free slots again: this worker takes lanes as before.")

    def _give_up(self, assigned: set[LaneId]) -> None:
        self._departures.give_up(assigned)

    def _say_leaving(self) -> None:
        # Once: whoever sees a hint looks again, ourselves included.
        if not self._is_leaving:
            self._is_leaving = True
            self._bus.registry.hint("leave")

    def _free_strays(self, view: View, assigned: set[LaneId]) -> None:
        """Free our leases of lanes that we neither hold nor should: the reply was lost as we took them."""
        strays = self._division.leased - assigned - self._scheduler.owned().keys()
        self._leases.swap(Swap(lane, view.leases[lane], freed(view.leases[lane])) for lane in strays)

    def _acquire(self, assigned: set[LaneId], view: View) -> None:
        swaps = []
        for lane in sorted(assigned - self._scheduler.owned().keys()):
            owner = view.owners.get(lane, "")
            # Our own name on a lane that we do not hold: the reply to an acquisition was lost.
            free = owner in ("", self._me)
            if free or self._roster.is_gone(owner):
                current = view.leases.get(lane, "")
                swaps.append(Swap(lane, current, self._leases.new_value(), suspect=not free))
        self._take(swaps)

    def _take(self, swaps: list[Swap]) -> None:
        if self._orderings.take(swaps).group_is_missing:
            self._served.declare_again()
            self._homes.forget()

    def _drop_lost(self, view: View, owned: dict[LaneId, str]) -> None:
        """Drop lanes whose lease is not ours any more (we were frozen, FLUSHALL, a verb of an operator)."""
        for lane in [lane for lane, lease in owned.items() if view.leases.get(lane) != lease]:
            if self._scheduler.owned().get(lane) == owned[lane]:
                self._orderings.drop(lane)
                self.look()

    # ------------------------------------------------------------------ unordered lanes

    def _slot_lanes(self) -> list[LaneId]:
        """Return our own lanes in unordered groups: one for each slot in every partition."""
        return [
            LaneId(home.topic, home.partition, home.group, f"{self._me}.{slot}")
            for home in self._orderings.unordered(self._served.names)
            for slot in range(self._slots)
        ]

    def _tend_unordered(self, slot_lanes: list[LaneId], view: View) -> None:
        """Take those of our slots' lanes that are not held yet."""
        if not slot_lanes:
            return
        owned = self._scheduler.owned()
        missing = [lane for lane in slot_lanes if lane not in owned]
        # Free, or our own after a lost reply. A lane that another worker drains, that worker will remove.
        free = [lane for lane in missing if view.owners.get(lane, "") in ("", self._me)]
        self._take([Swap(lane, view.leases.get(lane, ""), self._leases.new_value()) for lane in free])
