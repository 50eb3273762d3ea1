"""Leases: taking, changing and giving back a worker's right to lanes, always by compare-and-set."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bus.client import Bus
from bus.consuming import waiting
from bus.consuming.answer import UNFINISHED
from bus.consuming.lane import Lane
from bus.consuming.portions import portions
from bus.consuming.steps import Ask, run
from bus.errors import BusUnavailable, Forbidden, ForeignData, ServerError
from bus.format import lease
from bus.format.lane_id import LaneId
from bus.format.lease import freed
from bus.safety.complaints import Complaints
from bus.streams import commands
from bus.streams.connect import check, error_of, seconds_of
from bus.streams.wire import Argument
from bus.values import Ordering
from workers.order import Fallen
from workers.scheduling.owned import OwnedLane

logger = logging.getLogger("jitney.workers")

#: Keys and arguments of a script.
Call = tuple[list[str], list[Argument]]


@dataclass(frozen=True, slots=True)
class Swap:
    """One compare-and-set."""

    lane: LaneId
    old: str
    """The value that must be there; "" for none."""
    new: str
    ordering: Ordering | None = None
    """The ordering by which it is taken: refused if another is in effect. None if the lane is freed or kept.
    """
    suspect: bool = False
    """True if the owner did not give it back: what is pending may have killed it, and is marked so."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The result of taking lanes."""

    swaps: list[Swap]
    """The lanes that went through."""
    lost: bool
    """True if the group of some of them is not there: it must be made again first."""
    positions: Mapping[LaneId, str] = field(default_factory=dict)
    """The lanes that are surely at rest (nothing is pending there or ahead), with the position of the group.
    """


class Leases:
    """The leases of one bus, as one worker sees and takes them. Raises BusUnavailable."""

    def __init__(self, bus: Bus, incarnation: str) -> None:
        self._bus = bus
        self._incarnation = incarnation
        self._tokens = itertools.count(1)
        self._complaints = Complaints(logger)

    def new_value(self) -> str:
        """Return a value that no lease has ever had: the incarnation is unique, the number only grows."""
        return f"{self._incarnation}:{next(self._tokens)}"

    def read(self, lanes: Iterable[LaneId]) -> dict[LaneId, str]:
        """Return the values of those lanes that have a lease."""
        wanted = list(lanes)
        if not wanted:
            return {}
        values = self._bus.client.call("MGET", *(self.key(lane) for lane in wanted))
        return {
            lane: lease.read(value) for lane, value in zip(wanted, values, strict=True) if value is not None
        }

    def swap(self, swaps: Iterable[Swap]) -> list[Swap]:
        """Compare-and-set many leases in one round trip; return those that went through."""
        wanted = list(swaps)
        codes = [reply[0] for reply in self._run("lease", [self._call(each) for each in wanted])]
        return [each for each, code in zip(wanted, codes, strict=True) if code == 1]

    def take(self, swaps: Iterable[Swap]) -> Taken:
        """Do what `swap` does, for lanes that were not ours: each has an ordering, and gets its consumer
        name.
        """
        wanted = list(swaps)
        replies = self._run("lease", [self._call(each) for each in wanted])
        taken = [(each, reply) for each, reply in zip(wanted, replies, strict=True) if reply[0] == 1]
        return Taken(
            [each for each, _ in taken],
            lost=any(reply[0] == 2 for reply in replies),
            positions={each.lane: commands.text(reply[2]) for each, reply in taken if any(reply[2:])},
        )

    def retire(self, leases: Mapping[LaneId, str]) -> set[LaneId]:
        """Remove lanes under these values of their leases, with their consumer names, in one round trip:
        those with nothing pending, which are returned."""
        calls: list[Call] = [
            ([self._stream(lane), self.key(lane)], [lease.raw(value), lane.group, lane.lane])
            for lane, value in leases.items()
        ]
        codes = [reply[0] for reply in self._run("retire", calls)]
        return {lane for lane, code in zip(leases, codes, strict=True) if code == 1}

    def give_back(self, lanes: Iterable[OwnedLane]) -> None:
        """Free lanes for others; an unordered lane with nothing pending goes, with its consumer name."""
        given = list(lanes)
        for lane in given:
            self._settle_fallen(lane)
        retired = self.retire({lane.id: lane.lease for lane in given if lane.ordering == "none"})
        kept = [lane for lane in given if lane.id not in retired]
        self.swap(Swap(lane.id, lane.lease, freed(lane.lease), suspect=lane.suspect) for lane in kept)
        if given:
            self._bus.registry.hint("release")

    def renew(self, owned: OwnedLane, new: str) -> bool:
        """Change the lease of a lane that was taken back; False if it is not ours any more.

        What its slice has ended is settled at once: until a slot is free for the next slice seconds may pass,
        and if this worker is killed in them all of it is handled again. What was in hand is the next one's.
        """
        if not self.swap([Swap(owned.id, owned.lease, new)]):
            return False
        fallen = owned.fallen
        if fallen and (fallen.finished or fallen.refused):
            try:
                if self._settle(owned, new, replace(fallen, running=None)):
                    owned.fallen = replace(fallen, finished=(), refused=())
            except (BusUnavailable, ServerError, ForeignData) as error:
                self._complaints.trouble(error, "The next slice settles what was handled: %s", error)
        return True

    def _settle_fallen(self, owned: OwnedLane) -> None:
        """What a process has left and cannot settle any more, since its lane was taken back or it died.

        The next slice would have done it; whoever has the lane next knows nothing of it, would handle again
        what is done, and would try once more what has failed. Of a batch that was in hand he learns by the
        mark of a lease that was not given back.
        """
        if fallen := owned.fallen:
            self._settle(owned, owned.lease, fallen)
            owned.fallen, owned.suspect = None, owned.suspect or fallen.batch

    def _settle(self, owned: OwnedLane, value: str, fallen: Fallen) -> bool:
        """Settle it under this value of the lease; False if the server refuses, or the lease is not ours."""
        keys, group = self._bus.keys.partition(owned.id.topic, owned.id.partition), owned.id.group
        own = [
            keys.stream, keys.lease(group, owned.id.lane), keys.retry(group), keys.held(group),
            keys.state(group), keys.dead(group), keys.mark(group),
        ]  # fmt: skip
        try:
            *known, now = self._bus.client.pipe([*waiting.first(keys, group), ("TIME",)])
            lane = Lane(owned.state.leased(value), keys)
            known = [check(reply) for reply in known]
            lane.load(check(run(waiting.rest(keys, group, known), self._send)))
            fallen.settle_in(lane, None, int(seconds_of(now)) * 1000)
            lane.outcomes.done += lane.acks
            limit = self._bus.settings.dead_limit
            for part in portions(lane.outcomes):
                about: list[Argument] = [value, group, owned.id.lane, 0, limit, part.dump(), ""]
                reply = commands.run(self._bus.client, "turn", own, about)
                while reply[0] == UNFINISHED:  # large dead letters: what is left goes into the next script
                    reply = commands.run(self._bus.client, "turn", own, about)
                if reply[0] == 0:
                    return False
        except Forbidden as error:  # the lane goes on all the same: others may be allowed to settle it
            self._complaints.say(
                ("settle", own[1]), "What was handled cannot be settled (%s): %s", own[1], error
            )
            return False
        except ServerError as error:
            if not commands.is_nogroup(error):
                self._complain(own[1:2], error)
            return False
        return True

    def _send(self, ask: Ask) -> list[Any]:
        return self._bus.client.pipe(ask.commands)

    def key(self, lane: LaneId) -> str:
        return self._bus.keys.partition(lane.topic, lane.partition).lease(lane.group, lane.lane)

    def _stream(self, lane: LaneId) -> str:
        return self._bus.keys.partition(lane.topic, lane.partition).stream

    def _run(self, script: str, calls: list[Call]) -> list[list[Any]]:
        """Return the replies. What is wrong with one lane is logged, and leaves the others alone: [-1]."""
        found: list[list[Any]] = []
        for (keys, _), reply in zip(calls, commands.run_many(self._bus.client, script, calls), strict=True):
            if isinstance(reply, ServerError):
                self._complain(keys, reply)
                found.append([-1])
            else:
                found.append(reply if isinstance(reply, list) else [reply])
        return found

    def _complain(self, keys: list[str], reply: ServerError) -> None:
        error = error_of(reply)
        if not isinstance(error, ServerError | ForeignData):
            raise error
        self._complaints.say(("lease", keys[0]), "A lease cannot be changed (%s): %s", keys[0], error)

    def _call(self, swap: Swap) -> Call:
        lane = swap.lane
        keys = self._bus.keys.partition(lane.topic, lane.partition)
        return (
            [
                self.key(lane), keys.stream, keys.state(lane.group), keys.retry(lane.group),
                keys.held(lane.group),
            ],
            [
                lease.raw(swap.old), swap.new, lane.group, lane.lane,
                "1" if swap.suspect else "", swap.ordering or "",
            ],
        )  # fmt: skip
