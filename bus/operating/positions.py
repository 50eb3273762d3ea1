"""Positions of a group: where it is in each partition, and the reset that moves it.

A reset has a plan: for each partition before and after, how many messages are replayed or skipped, and what
becomes of those that wait. `reset` does what a plan says, while workers run: in each partition the script
that begins it fences them, they let go, and go on from the new position (see bus.topics.resets).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bus.errors import BusError, ConfigurationError, UnknownGroup
from bus.format.state import new_era
from bus.operating import standing as standing_of
from bus.operating.standing import Point, Standing
from bus.operating.targets import Target, at, offset
from bus.safety.verbs import verb
from bus.streams import counting
from bus.topics import resets
from bus.topics.resets import Begun, Refused
from bus.values import id_pair

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.format.keys import PartitionKeys
    from bus.topics.resets import Refusal

#: How often a reset is tried where something must be put right first.
_ATTEMPTS = 3

_WHY: dict[Refusal, str] = {
    "era": "the stream was made anew",
    "position": "the group has moved on",
    "giving": "what waits is still being given back to it",
    "reset": "another reset is on its way",
}


class PlanChanged(BusError):
    """A group is not any more where a plan says it is; nothing was done in the partitions named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What a reset does in one partition."""

    partition: int
    before: Point
    after: Point
    replayed: int
    """Messages that the group was given, and gets once more."""
    skipped: int
    """Messages that the group was not given yet, and will not get."""
    pending: int
    """Messages that were given and are not settled, retrying and held ones among them: forgotten."""
    abandoned: int
    """Those of them that lie before the new position, so nobody will handle them."""
    retrying: int
    held: int
    dead: int
    """Dead letters: they stay."""
    warnings: tuple[str, ...]
    era: str
    last_id: str

    @property
    def moves(self) -> bool:
        """Whether there is anything to do."""
        return self.before != self.after or self.pending > 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reset will do, or has done."""

    topic: str
    group: str
    target: Target
    moves: tuple[Move, ...]

    @property
    def basis(self) -> str:
        """What the plan rests on, as a short text: another one after anything has changed."""
        known = [(move.partition, move.era, move.before.id, move.last_id) for move in self.moves]
        return hashlib.sha256(repr(known).encode()).hexdigest()[:12]


def plan(
    bus: Bus, topic: str, group: str, target: Target, *, partitions: Collection[int] | None = None
) -> Plan:
    """Return what a reset would do now; nothing is changed.

    `partitions`: only these; None for all. Raises UnknownTopic, UnknownGroup, ConfigurationError (no such
    partition, or the target says nothing of it), ForeignData, BusUnavailable.
    """
    spec = bus.registry.stored(topic)
    bus.registry.group(topic, group)
    chosen = _chosen(topic, spec.partitions, partitions, target)
    if target.kind == "group":
        bus.registry.group(topic, target.name)
    standings = standing_of.read(bus, topic, group, chosen)
    return Plan(topic, group, target, tuple(_move(bus, standing, target) for standing in standings))


@verb("reset group")
def reset(bus: Bus, wanted: Plan, *, basis: str | None = None) -> Plan:
    """Do what a plan says, and return it with what was there when it was done.

    `basis`: of the plan that the operator has seen; nothing is done if the present one rests on another.
    None: the group may have moved on since, which changes only what lies before the new position.
    Partitions in which nothing would change are left alone. Interrupted, it is brought to its end by whoever
    comes next.
    Raises PlanChanged; ReadOnly, BusUnavailable, ForeignData.
    """
    if basis is not None and basis != wanted.basis:
        raise PlanChanged(
            f"Group {wanted.group!r} of topic {wanted.topic!r} has moved since the plan {basis} was made; "
            "nothing was done."
        )
    strictly = basis is not None
    done = (_reset(bus, wanted, move, strictly=strictly) if move.moves else move for move in wanted.moves)
    return replace(wanted, moves=tuple(done))


def _reset(bus: Bus, wanted: Plan, move: Move, *, strictly: bool) -> Move:
    keys = bus.keys.partition(wanted.topic, move.partition)
    # A group that goes back has its effects once more: under a new era, see bus.transactions.inbox.
    back = id_pair(move.after.id) < id_pair(move.before.id)
    era = new_era(bus.settings.prefix) if back else move.era
    refused: Refused | None = None
    for _ in range(_ATTEMPTS):
        begun = resets.begin(
            bus.client,
            keys,
            wanted.group,
            to=move.after.id,
            read=move.after.offset,
            era=move.era,
            new_era=era,
            position=move.before.id if strictly else "",
        )
        if isinstance(begun, Begun):
            resets.finish(bus.client, keys, wanted.group)
            bus.registry.hint("reset")
            return _as_done(bus, keys, move, begun)
        refused = begun
        if begun.why in ("era", "position"):
            break
        bus.registry.restore_partition(wanted.topic, move.partition)
    why = _WHY[refused.why] if refused else ""
    raise PlanChanged(f"Partition {move.partition} of topic {wanted.topic!r} was not reset: {why}.")


def _as_done(bus: Bus, keys: PartitionKeys, move: Move, begun: Begun) -> Move:
    """Return the move with what was there when it began: the group may have gone on since the plan."""
    if begun.position == move.before.id:
        return replace(move, pending=begun.pending, retrying=begun.retrying, held=begun.held)
    last = max(move.last_id, begun.position, key=id_pair)
    further = counting.count(bus.client, keys.stream, move.before.id, begun.position)
    before = Point(begun.position, move.before.offset + further)
    replayed, skipped = _between(bus, keys, before, move.after)
    return replace(
        move, before=before, replayed=replayed, skipped=skipped, pending=begun.pending,
        retrying=begun.retrying, held=begun.held, last_id=last,
    )  # fmt: skip


# ---------------------------------------------------------------------- one partition


def _chosen(topic: str, count: int, partitions: Collection[int] | None, target: Target) -> list[int]:
    chosen = sorted(set(range(count) if partitions is None else partitions))
    if bad := [number for number in chosen if not 0 <= number < count]:
        raise ConfigurationError(
            f"Topic {topic!r} has the partitions 0 to {count - 1}, no {', '.join(map(str, bad))}."
        )
    if target.positions is not None:
        if partitions is None:
            chosen = sorted(target.positions)
        missing = [number for number in chosen if number not in target.positions]
        unknown = [number for number in target.positions if not 0 <= number < count]
        if missing or unknown:
            raise ConfigurationError(
                f"The positions given do not fit topic {topic!r}, which has {count} partitions. "
                f"Missing: {_names(missing)}. Too many: {_names(unknown)}."
            )
    return chosen


def _names(partitions: Iterable[int]) -> str:
    return ", ".join(map(str, partitions)) or "none"


def _move(bus: Bus, standing: Standing, target: Target) -> Move:
    before = standing.point(bus, standing.position)
    after, warnings = _resolve(bus, standing, target, before)
    replayed, skipped = _between(bus, standing.keys, before, after)
    abandoned = standing.pending_up_to(bus, after.id)
    if before == after and not standing.pending:
        warnings.append("nothing to do")
    if abandoned:
        warnings.append(f"{abandoned:,} messages that are not settled lie before it: nobody will handle them")
    return Move(
        partition=standing.partition,
        before=before,
        after=after,
        replayed=replayed,
        skipped=skipped,
        pending=standing.pending,
        abandoned=abandoned,
        retrying=standing.retrying,
        held=standing.held,
        dead=standing.dead,
        warnings=tuple(warnings),
        era=standing.era,
        last_id=standing.last_id,
    )


def _between(bus: Bus, keys: PartitionKeys, before: Point, after: Point) -> tuple[int, int]:
    """Return how many messages that are there come again, and how many are passed over."""
    if id_pair(after.id) < id_pair(before.id):
        return counting.count(bus.client, keys.stream, after.id, before.id), 0
    return 0, counting.count(bus.client, keys.stream, before.id, after.id)


def _resolve(bus: Bus, standing: Standing, target: Target, before: Point) -> tuple[Point, list[str]]:
    """Return the place that a target means in one partition, and what there is to say of it."""
    if target.positions is not None:
        given = target.positions[standing.partition]
        target = offset(int(given)) if given.isdigit() else at(given)
    if target.kind == "latest":
        return Point(standing.last_id, standing.added), []
    if target.kind == "earliest":
        return Point("0-0", standing.first_offset), []
    if target.kind in ("offset", "shift"):
        number = target.number + (before.offset if target.kind == "shift" else 0)
        return standing.at_offset(bus, number, before), _outside(standing, number)
    id = _id_of(standing, target)
    if id_pair(id) > id_pair(standing.last_id):
        return Point(standing.last_id, standing.added), ["it lies past the last message: to the end"]
    warnings = []
    if standing.first_offset and (not standing.newest or id_pair(id) < id_pair(standing.first_id)):
        warnings.append("what followed there was trimmed away: to the first message that is kept")
    return standing.point(bus, id), warnings


def _id_of(standing: Standing, target: Target) -> str:
    """Return the id after which the group is to go on, by a target that names an id, a time, or a group."""
    if target.kind == "group":
        if target.name not in standing.others:
            raise UnknownGroup(standing.keys.stream, target.name)
        return standing.others[target.name]
    if target.kind == "id":
        return target.name
    ms = target.number if target.kind == "time" else standing.now - target.number
    return counting.before(f"{max(0, ms)}-0")


def _outside(standing: Standing, wanted: int) -> list[str]:
    if wanted < standing.first_offset:
        trimmed = "trimmed away" if wanted >= 0 else "before the beginning"
        return [f"offset {wanted} was {trimmed}: to {standing.first_offset}, the first that is kept"]
    if wanted > standing.added:
        return [f"offset {wanted} lies past the end: to {standing.added}"]
    return []
