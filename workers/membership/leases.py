"""Takes, changes and gives back a worker's leases on lanes, always by compare-and-set."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterable, Mapping
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

#: Keys and arguments of one call of a script.
Call = tuple[list[str], list[Argument]]


@dataclass(frozen=True, slots=True)
class Swap:
    """One compare-and-set of a lease."""

    lane: LaneId
    old: str
    """The value that the lease must have; "" if there must be none."""
    new: str
    ordering: Ordering | None = None
    """The ordering by which the lane is taken; refused if another is in effect. None if it is freed or
    kept.
    """
    suspect: bool = False
    """True if the owner did not give the lease back: what is pending may have killed it, and is marked so."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The result of taking lanes."""

    swaps: list[Swap]
    """Those that went through."""
    group_is_missing: bool
    """True if the group of some lane is missing: it must be made again first."""
    positions: Mapping[LaneId, str] = field(default_factory=dict)
    """Lanes that are surely at rest, with nothing pending there or ahead → the position of the group."""


class Leases:
    """The leases of one bus as one worker sees and takes them. Raises BusUnavailable."""

    def __init__(self, bus: Bus, incarnation: str) -> None:
        self._bus = bus
        self._incarnation = incarnation
        self._tokens = itertools.count(1)
        self._complaints = Complaints(logger)

    def new_value(self) -> str:
        """Return a value that no lease has ever had: the incarnation is unique, the number only grows."""
        return f"{self._incarnation}:{next(self._tokens)}"

    def read(self, lanes: Iterable[LaneId]) -> dict[LaneId, str]:
        """Return the values of the leases of these lanes, as far as they have one."""
        lanes = list(lanes)
        if not lanes:
            return {}
        values = self._bus.client.call("MGET", *(self.key(lane) for lane in lanes))
        return {
            lane: lease.read(value) for lane, value in zip(lanes, values, strict=True) if value is not None
        }

    def swap(self, swaps: Iterable[Swap]) -> list[Swap]:
        """Compare-and-set many leases in one round trip; return those that went through."""
        swaps = list(swaps)
        codes = [reply[0] for reply in self._run("lease", [self._call(swap) for swap in swaps])]
        return [swap for swap, code in zip(swaps, codes, strict=True) if code == 1]

    def free_of(self, lanes: Iterable[LaneId], owners: Collection[str]) -> list[Swap]:
        """Free those of these lanes whose leases bear one of these names; return the swaps that went through.

        What was in hand there is in no worker's hand now, and may have killed the process that had it.
        """
        return self.swap(
            Swap(lane, value, freed(value), suspect=True)
            for lane, value in self.read(lanes).items()
            if lease.owner_of(value) in owners
        )

    def take(self, swaps: Iterable[Swap]) -> Taken:
        """Take lanes that were not ours: `swap`, and each lane gets its consumer name.

        Each swap has an ordering.
        """
        swaps = list(swaps)
        replies = self._run("lease", [self._call(swap) for swap in swaps])
        taken = [(swap, reply) for swap, reply in zip(swaps, replies, strict=True) if reply[0] == 1]
        return Taken(
            [swap for swap, _ in taken],
            group_is_missing=any(reply[0] == 2 for reply in replies),
            positions={swap.lane: commands.text(reply[2]) for swap, reply in taken if any(reply[2:])},
        )

    def retire(self, leases: Mapping[LaneId, str]) -> set[LaneId]:
        """Remove those of these lanes that have nothing pending, with their consumer names; return them.

        One round trip. `leases`: the values that their leases must have.
        """
        calls: list[Call] = [
            ([self._stream(lane), self.key(lane)], [lease.raw(value), lane.group, lane.lane])
            for lane, value in leases.items()
        ]
        codes = [reply[0] for reply in self._run("retire", calls)]
        return {lane for lane, code in zip(leases, codes, strict=True) if code == 1}

    def give_back(self, lanes: Iterable[OwnedLane]) -> None:
        """Free lanes for other workers.

        An unordered lane with nothing pending goes, with its consumer name.
        """
        lanes = list(lanes)
        for lane in lanes:
            self.settle_for_the_dead(lane)
        retired = self.retire({lane.id: lane.lease for lane in lanes if lane.ordering == "none"})
        kept = [lane for lane in lanes if lane.id not in retired]
        self.swap(Swap(lane.id, lane.lease, freed(lane.lease), suspect=lane.suspect) for lane in kept)
        if lanes:
            self._bus.registry.hint("release")

    def renew(self, owned: OwnedLane, new: str) -> bool:
        """Change the lease of a lane that was taken back; return False if the lane is not ours any more.

        The outcomes of what its slice has ended are settled at once. Seconds may pass until a slot is free
        for the next slice, and if this worker is killed in them, all of it is handled again. The message in
        hand is left to the next slice.
        """
        if not self.swap([Swap(owned.id, owned.lease, new)]):
            return False
        fallen = owned.fallen
        if fallen and (fallen.finished or fallen.refused):
            try:
                if self._settle_by_scripts(owned, new, replace(fallen, running=None)):
                    owned.fallen = replace(fallen, finished=(), refused=())
            except (BusUnavailable, ServerError, ForeignData) as error:
                self._complaints.trouble(error, "The next slice settles what was handled: %s", error)
        return True

    def settle_for_the_dead(self, owned: OwnedLane) -> None:
        """Settle what a process has left and cannot settle any more: it died, or its lane was taken back.

        The next slice would have done it. The next owner of the lane knows nothing of it: it would handle
        again what is done, and try once more what has failed. It learns of a batch that was in hand from the
        mark of a lease that was not given back.
        """
        if fallen := owned.fallen:
            self._settle_by_scripts(owned, owned.lease, fallen)
            owned.fallen, owned.suspect = None, owned.suspect or fallen.batch

    def _settle_by_scripts(self, owned: OwnedLane, value: str, fallen: Fallen) -> bool:
        """Settle this under a value of the lease; return False if that cannot be done.

        The server refuses it, or the lease is not ours any more.
        """
        keys, group = self._bus.keys.partition(owned.id.topic, owned.id.partition), owned.id.group
        own = [
            keys.stream, keys.lease(group, owned.id.lane), keys.retry(group), keys.held(group),
            keys.state(group), keys.dead(group), keys.mark(group),
        ]  # fmt: skip
        try:
            *first, now = self._bus.client.pipe([*waiting.first(keys, group), ("TIME",)])
            lane = Lane(owned.state.leased(value), keys)
            first = [check(reply) for reply in first]
            lane.load(check(run(waiting.rest(keys, group, first), self._send)))
            fallen.keep_in(lane, None, int(seconds_of(now)) * 1000)
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
        """Return the replies.

        What is wrong with one lane is logged, its reply is [-1], and the others go on.
        """
        answers: list[list[Any]] = []
        for (keys, _), reply in zip(calls, commands.run_many(self._bus.client, script, calls), strict=True):
            if isinstance(reply, ServerError):
                self._complain(keys, reply)
                answers.append([-1])
            else:
                answers.append(reply if isinstance(reply, list) else [reply])
        return answers

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
