"""Knows for one worker which ordering is in effect in each partition, and changes it to the declared one."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from bus.client import Bus
from bus.format.lane_id import LaneId
from bus.format.worker_record import where
from bus.safety.complaints import Complaints
from bus.signals import lease_lost
from bus.topics import reordering
from bus.topics.registry import Tables
from bus.topics.reordering import Change, GroupPartition
from bus.values import Ordering
from workers.membership.leases import Leases, Swap, Taken
from workers.scheduling.scheduler import Scheduler
from workers.slices.failures import announce

logger = logging.getLogger("jitney.workers")
#: Complaints of what may happen to many lanes in one moment.
_bursts = Complaints(logger, seconds=1.0)


class Orderings:
    """The orderings as the keeper of one worker knows them. Not thread-safe. Raises BusUnavailable."""

    def __init__(self, bus: Bus, leases: Leases, scheduler: Scheduler) -> None:
        self._bus = bus
        self._leases = leases
        self._scheduler = scheduler
        self._complaints = Complaints(logger)
        self._effect: dict[GroupPartition, Ordering] = {}
        self._declared: dict[tuple[str, str], Ordering] = {}
        """(topic, group) → the declared ordering."""
        self._tables: Tables | None = None
        self._unsure: set[GroupPartition] = set()
        """The places whose ordering in effect is not known, or is not the declared one: nearly always
        none.
        """

    def refresh(self, tables: Tables, homes: Callable[[], Iterable[LaneId]]) -> None:
        """Take in what is declared; ask what is in effect where that is not known, or not as declared.

        Where nothing changes this costs no round trip, and no walk through `homes`: those that we serve.
        """
        if tables is not self._tables:
            self._declared = {(group.topic, group.name): group.ordering for group in tables.groups}
            self._unsure.update(map(_place, homes()))
            self._scheduler.order_by(self._declared)
            self._tables = tables
        unsure = [
            (place, declared)
            for place in sorted(self._unsure)
            if (declared := self._declared_at(place)) is not None and self._effect.get(place) != declared
        ]
        self._effect.update(reordering.read(self._bus, unsure))
        self._unsure = {place for place, declared in unsure if self._effect.get(place) != declared}

    def of(self, lane: LaneId) -> Ordering | None:
        """Return the ordering in effect where this lane is; None if it is not known at this moment."""
        return self._effect.get(_place(lane))

    def unordered(self, served: Collection[tuple[str, str]]) -> list[LaneId]:
        """Return the homes of these (topic, group) where "none" is both declared and in effect."""
        return [
            LaneId(place.topic, place.partition, place.group)
            for place, effect in self._effect.items()
            if effect == "none" == self._declared_at(place) and (place.topic, place.group) in served
        ]

    def homes_under(self, ordering: Ordering) -> list[LaneId]:
        """Return the homes where this ordering is in effect, of the groups that we serve."""
        return [_home(place) for place, effect in self._effect.items() if effect == ordering]

    def is_changing(self, lane: LaneId) -> bool:
        """Return whether the ordering in effect where this lane is differs from the declared one."""
        place = _place(lane)
        return self._effect.get(place) != self._declared_at(place)

    def take(self, swaps: Iterable[Swap], *, drain_only: bool = False) -> Taken:
        """Acquire lanes, each by the ordering that is in effect there.

        Where one is refused, another ordering may be in effect by now: the next look asks.
        """
        ordered = [
            (replace(swap, ordering=effect), effect)
            for swap in swaps
            if (effect := self.of(swap.lane)) is not None
        ]
        effects = {swap.lane: effect for swap, effect in ordered}
        taken = self._leases.take(swap for swap, _ in ordered)
        for swap in taken.swaps:
            position = None if drain_only else taken.positions.get(swap.lane)
            effect = effects.pop(swap.lane)
            self._scheduler.add(swap.lane, swap.new, effect, drain_only=drain_only, position=position)
        for lane in effects:
            self._forget(lane)
        if taken.swaps:
            self._scheduler.order_by(self._declared)
        return taken

    def drop(self, lane: LaneId) -> None:
        """Drop a lane whose lease is not ours any more."""
        self._forget(lane)
        dropped = self._scheduler.lost(lane)
        # A change of the ordering frees all lanes.
        level = logging.INFO if dropped is not None and dropped.closed else logging.WARNING
        _bursts.say("lost", "The lease of %s is not ours any more.", where(lane), level=level)
        announce(lease_lost, type(self), lane=lane)

    def change(self) -> None:
        """Put the declared orderings into effect in those of our homes where nothing is pending any more."""
        if not self._unsure:
            return
        owned = self._scheduler.owned()
        places = [place for place in sorted(self._unsure) if _home(place) in owned]
        to_change = [
            (place, effect, declared)
            for place in places
            if (effect := self._effect.get(place)) is not None
            and (declared := self._declared_at(place)) is not None
            and declared != effect
        ]
        changes = reordering.change(self._bus, to_change)
        by_group: defaultdict[tuple[str, str], list[Change]] = defaultdict(list)
        for change in changes:
            by_group[change.place.topic, change.place.group].append(change)
        for group, of_group in by_group.items():
            self._tell(group, of_group)
        if any(change.waiting == 0 for change in changes):
            self._bus.registry.hint("ordering")  # all lanes there are free now

    def _tell(self, group: tuple[str, str], changes: list[Change]) -> None:
        """Log how many partitions of a group have its declared ordering now, and how many wait for it."""
        declared = self._declared[group]
        made = [change for change in changes if change.effect == declared]
        left = [change for change in changes if change.effect != declared]
        if made:
            logger.info("Group %s of topic %s has the ordering %r now in %s of its partitions.",
                        group[1], group[0], declared, len(made))  # fmt: skip
        if not left:
            self._complaints.over(group)
            return
        self._complaints.say(
            group,
            "Group %s of topic %s waits for %s messages in %s partitions until its ordering changes from %r "
            "to %r; nothing new is fetched there.",
            group[1], group[0], sum(max(0, change.waiting) for change in left), len(left), left[0].effect,
            declared,
        )  # fmt: skip

    def _forget(self, lane: LaneId) -> None:
        place = _place(lane)
        self._effect.pop(place, None)
        self._unsure.add(place)

    def _declared_at(self, place: GroupPartition) -> Ordering | None:
        return self._declared.get((place.topic, place.group))


def _place(lane: LaneId) -> GroupPartition:
    return GroupPartition(lane.topic, lane.group, lane.partition)


def _home(place: GroupPartition) -> LaneId:
    return LaneId(place.topic, place.partition, place.group)
