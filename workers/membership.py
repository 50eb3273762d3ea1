"""Who should own what: the thread that keeps this worker's beat and its leases.

It has connections of its own, so that a busy main loop never makes a worker look dead. There is no
coordinator: every worker computes the same assignment from the same tables, acquires free lanes that
should be its own by compare-and-set, and gives up, after the running slice, those that should not.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections

from bus import marks
from bus.client import Bus
from bus.complaints import Complaints
from bus.errors import BusError, BusUnavailable, UnknownTopic
from bus.lane import ORDERED_LANE, LaneId
from bus.newcomers import Newcomers
from bus.registry import GroupSpec
from bus.signals import lease_lost
from bus.streams import commands
from bus.subscriptions import Subscription
from workers.assignment import assign
from workers.declines import Declines
from workers.forks import forks
from workers.identity import Identity
from workers.leases import Leases, Swap, freed, owner_of
from workers.owned import OwnedLane
from workers.roster import Roster
from workers.scheduler import Scheduler

logger = logging.getLogger("jitney.workers")
bursts = Complaints(logger, seconds=1.0)  # of what may happen to many lanes in one moment

#: What is wrong is said at once, then so often. Seconds.
COMPLAIN_SECONDS = 60.0
#: How often unordered groups are looked at for lanes whose worker is gone. Seconds.
ADOPT_SECONDS = 5.0


class Membership(threading.Thread):
    """The keeper of one worker's leases."""

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
        """`on_change` is called, in this thread, after lanes came, went or were paused."""
        super().__init__(name="jitney-membership", daemon=True)
        self._bus = bus
        self._me = identity.incarnation
        self._subscriptions = list(subscriptions)
        self._scheduler = scheduler
        self._slots = slots
        self._on_change = on_change
        self._clock = clock
        self._roster = Roster(bus, identity, self._subscriptions, processes, clock)
        self._leases = Leases(bus, identity.incarnation)
        self._declines = Declines(clock)
        self._newcomers = Newcomers(bus)
        self._errands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._declared = False
        self._leaving = False
        self._complained = -COMPLAIN_SECONDS
        self._adopt_at = 0.0
        self.heard_at = clock()
        """When this thread last went round its loop, by the monotonic clock."""

    @property
    def leads(self) -> bool:
        """Whether this worker does the upkeep."""
        return self._roster.leader == self._me

    # ------------------------------------------------------------------ for other threads

    def look(self) -> None:
        """Look at the tables now instead of at the next beat."""
        self._errands.put(None)

    def stop(self) -> None:
        self._stopping.set()
        self.look()

    def release(self, lanes: Iterable[OwnedLane]) -> None:
        """Give lanes back, as an errand."""
        given = list(lanes)
        if given:
            self._errands.put(lambda: self._leases.give_back(given))

    def renew(self, lane: OwnedLane) -> None:
        """Give a lane that was taken back from a stuck slice a new lease, as an errand."""
        swap = Swap(lane.id, lane.lease, self._leases.new_value())

        def work() -> None:
            if self._leases.swap([swap]):
                self._scheduler.renew(lane.id, swap.old, swap.new)
            elif self._scheduler.owned().get(lane.id) == swap.old:
                self._scheduler.lost(lane.id)
            self._on_change()

        self._errands.put(work)

    def repair(self) -> None:
        """Streams or groups have vanished: declare ours again."""
        self._declared = False
        self.look()

    def unblock(self, clients: Iterable[int]) -> None:
        """End the lingering of slices whose slots are wanted, as an errand."""
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
        """The pool and this thread have ended: give everything back."""
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
                self._roster.failed()
            if self._clock() - self._complained >= COMPLAIN_SECONDS:
                self._complained = self._clock()
                logger.warning("The worker cannot look after its leases now and goes on trying: %s", error)
            return False
        self._complained = -COMPLAIN_SECONDS
        return True

    def _next_look(self) -> float:
        return min(self._roster.next_look(), self._declines.next_look(self._scheduler.waiting()))

    def _look(self) -> None:
        leaving = self._scheduler.stopped or self._scheduler.standing
        self._leaving = self._leaving and leaving
        self._decline()
        self._roster.beat(leaving=leaving, declines=self._declines.dump())
        homes = self._homes()
        leases = self._leases.read(homes)
        self._bury(leases)
        self._drop_lost()  # first: what is lost must not be given up as if it were ours, without a word
        wanted = self._assigned(homes, leases)
        self._give_up(wanted)
        self._free_strays(leases, wanted)
        if leaving:
            self._say_leaving()
        else:
            self._acquire(wanted, leases)
            self._tend_unordered(wanted)
        self._on_change()

    # ------------------------------------------------------------------ what there is

    def _homes(self) -> list[LaneId]:
        """The partitions of all our subscriptions; each has one home worker, whatever the ordering."""
        known = self._known()
        if not self._declared:
            self._declare(known)
        groups = {(group.topic, group.name): group for group in self._bus.registry.groups()}
        if self._newcomers.must_declare(((each.topic, each.group) for each in known), groups):
            self._declare(known)  # FLUSHALL, or somebody deleted a group that is still subscribed
        self._scheduler.pause(place for place, group in groups.items() if group.paused)
        return [
            LaneId(each.topic, partition, each.group)
            for each in known
            if (each.topic, each.group) not in self._newcomers.refused
            for partition in range(self._bus.registry.spec(each.topic).partitions)
        ]

    def _known(self) -> list[Subscription]:
        """The subscriptions whose topics exist."""
        known = []
        for each in self._subscriptions:
            try:
                self._bus.registry.spec(each.topic)
            except UnknownTopic as error:
                if not self._declared:
                    logger.warning("%s waits for its topic: %s", each.handler_name, error)
            else:
                known.append(each)
        return known

    def _declare(self, known: list[Subscription]) -> None:
        self._newcomers.declare(
            GroupSpec(topic=each.topic, name=each.group, ordering=each.ordering, start=each.start)
            for each in known
        )
        self._declared = True
        self._advance()

    def _advance(self) -> None:
        """Streams or groups had vanished, or the server came back with older data."""
        try:
            with forks.work():
                settled = marks.advance(self._bus)
            if settled:
                logger.warning(
                    "Redis came back with older data: %s settled messages are passed over.", settled
                )
        except (Error, ImproperlyConfigured) as error:
            logger.warning("The copies of the marks cannot be read, so none is used: %s", error)
        finally:
            connections.close_all()  # this thread may not need it again for weeks

    # ------------------------------------------------------------------ ordered lanes

    def _bury(self, leases: dict[LaneId, str]) -> None:
        """Free the lanes of workers that are gone, for whoever should have them, and strike these off.

        A worker that was thought dead and comes back finds its leases changed, and enters itself again.
        """
        gone = self._roster.gone
        if not gone:
            return
        swaps = [
            Swap(lane, value, freed(value), suspect=True)
            for lane, value in leases.items()
            if owner_of(value) in gone
        ]
        swapped = self._leases.swap(swaps)
        for swap in swapped:
            leases[swap.lane] = swap.new
        struck = self._roster.strike_off()
        # Only where something changed: whoever sees a hint looks again, and would hint again, and so on.
        if swapped or struck:
            logger.warning("Workers that are gone: %s. Their lanes are taken over.", ", ".join(sorted(gone)))
            self._bus.registry.hint("release")

    def _assigned(self, homes: list[LaneId], leases: dict[LaneId, str]) -> set[LaneId]:
        """The homes that should be ours."""
        owners = {lane: owner_of(value) for lane, value in leases.items()}
        assigned = assign(self._roster.serving(), homes, owners, self._roster.declining())
        return {lane for lane, worker in assigned.items() if worker == self._me}

    def _decline(self) -> None:
        """Look which lanes wait for a slot in vain: the beat says so, and others take them."""
        before = self._declines.busy
        self._declines.see(self._scheduler.waiting(), at_rest=self._scheduler.is_at_rest())
        if self._declines.busy and not before:
            logger.info("All slots are busy: lanes with work go to workers that have one free, if any.")
        elif before and not self._declines.busy:
            logger.info("There are free slots again: this worker takes lanes as before.")

    def _give_up(self, wanted: set[LaneId]) -> None:
        standing = self._scheduler.standing
        free = self._scheduler.left_standing() if standing or self._scheduler.stopped else []
        for lane in self._scheduler.owned():
            if (lane.lane != ORDERED_LANE and not standing) or lane in wanted:
                self._scheduler.stay(lane)
            elif (left := self._scheduler.leave(lane)) is not None:
                free.append(left)
        self._leases.give_back(free)

    def _say_leaving(self) -> None:
        # Once: whoever sees a hint looks again, ourselves included.
        if not self._leaving:
            self._leaving = True
            self._bus.registry.hint("leave")

    def _free_strays(self, leases: dict[LaneId, str], wanted: set[LaneId]) -> None:
        """Leases that bear our name but are not held: the reply to an acquisition was lost, and meanwhile
        the lane should be somebody else's."""
        owned = self._scheduler.owned()
        strays = {
            lane: value
            for lane, value in leases.items()
            if owner_of(value) == self._me and lane not in owned and lane not in wanted
        }
        self._leases.swap(Swap(lane, value, freed(value)) for lane, value in strays.items())

    def _acquire(self, wanted: set[LaneId], leases: dict[LaneId, str]) -> None:
        ordering = {(each.topic, each.group): each.ordering for each in self._subscriptions}
        swaps = []
        for lane in sorted(wanted - self._scheduler.owned().keys()):
            current = leases.get(lane, "")
            owner = owner_of(current)
            # Our own name on a lane that we do not hold: the reply to an acquisition was lost.
            free = owner in ("", self._me)
            if free or self._roster.is_gone(owner):
                swaps.append(Swap(lane, current, self._leases.new_value(), suspect=not free))
        for swap in self._leases.swap(swaps):
            self._scheduler.add(swap.lane, swap.new, ordering[swap.lane.topic, swap.lane.group])

    def _drop_lost(self) -> None:
        """Drop lanes whose lease is not ours any more (we were frozen, FLUSHALL, a verb of an operator)."""
        owned = self._scheduler.owned()
        current = self._leases.read(owned)
        for lane, lease in owned.items():
            if current.get(lane) != lease and self._scheduler.owned().get(lane) == lease:
                where = f"{lane.topic}/{lane.partition} for {lane.group}"
                bursts.say("lost", "The lease of %s is not ours any more.", where)
                lease_lost.send_robust(type(self), lane=lane)
                self._scheduler.lost(lane)
                self.look()

    # ------------------------------------------------------------------ unordered lanes

    def _tend_unordered(self, homes: set[LaneId]) -> None:
        """One lane for each slot in every partition, whoever is its home; orphans are adopted at home."""
        refused = self._newcomers.refused
        known = (each for each in self._known() if (each.topic, each.group) not in refused)
        groups = [each for each in known if each.ordering == "none"]
        owned = self._scheduler.owned()
        lanes = [
            LaneId(each.topic, partition, each.group, f"{self._me}.{slot}")
            for each in groups
            for partition in range(self._bus.registry.spec(each.topic).partitions)
            for slot in range(self._slots)
        ]
        missing = [lane for lane in lanes if lane not in owned]
        values = self._leases.read(missing)
        # Free, or our own after a lost reply. What somebody else drains he will remove.
        free = [lane for lane in missing if owner_of(values.get(lane, "")) in ("", self._me)]
        swaps = [Swap(lane, values.get(lane, ""), self._leases.new_value()) for lane in free]
        for swap in self._leases.swap(swaps):
            self._scheduler.add(swap.lane, swap.new, "none")
        if groups and self._clock() >= self._adopt_at:
            self._adopt_at = self._clock() + ADOPT_SECONDS
            names = {(each.topic, each.group) for each in groups}
            self._adopt([home for home in sorted(homes) if (home.topic, home.group) in names])

    def _adopt(self, homes: list[LaneId]) -> None:
        """Take over lanes whose worker is gone: what is pending there is handled, then the lane goes."""
        owned = self._scheduler.owned()
        others = [lane for lane in self._consumers(homes) if lane not in owned and lane.lane != ORDERED_LANE]
        # A lane has its lease before its name, so one without a lease, or with a free one, is nobody's.
        leases = self._leases.read(others)
        owners = {lane: owner_of(leases.get(lane, "")) for lane in others}
        orphans = [lane for lane in others if not owners[lane] or self._roster.is_gone(owners[lane])]
        swaps = [
            Swap(
                lane,
                leases.get(lane, ""),
                self._leases.new_value(),
                suspect=bool(owners[lane]),
            )
            for lane in orphans
        ]
        for swap in self._leases.swap(swaps):
            self._scheduler.add(swap.lane, swap.new, "none", drain_only=True)
            # The orphan's retries are in the zset that all lanes share: ours must read it anew.
            self._scheduler.wake(lane for lane in owned if lane.partition == swap.lane.partition)

    def _consumers(self, homes: list[LaneId]) -> list[LaneId]:
        asked: list[Any] = [
            ("XINFO", "CONSUMERS", self._bus.keys.partition(home.topic, home.partition).stream, home.group)
            for home in homes
        ]
        lanes = []
        for home, reply in zip(homes, self._bus.client.pipe(asked), strict=True):
            for raw in reply if isinstance(reply, list) else ():
                name = commands.text(commands.fields_of(raw)["name"])
                lanes.append(LaneId(home.topic, home.partition, home.group, name))
        return lanes
