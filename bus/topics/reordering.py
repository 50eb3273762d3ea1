"""Which ordering a group works by in a partition now, and how that changes to the declared one.

Another ordering means other lanes, and other messages that wait for each other. So a change waits until
nothing is pending there: messages that were given out keep the promise under which they were. Meanwhile the
lanes work by the ordering in effect and fetch nothing new; then one script puts the other one into effect and
frees all lanes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bus.format.keys import PartitionKeys
from bus.format.lane_id import ORDERED_LANE
from bus.streams import commands
from bus.streams.commands import fields_of, is_nogroup, is_of_one_partition, text
from bus.streams.connect import Client, check
from bus.streams.wire import Command
from bus.values import ORDERINGS, Ordering

if TYPE_CHECKING:
    from bus.client import Bus

#: The field of a group's state that holds the ordering in effect.
FIELD = "ordering"


class GroupPartition(NamedTuple):
    """One group in one partition."""

    topic: str
    group: str
    partition: int


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a change of ordering in one partition."""

    place: GroupPartition
    effect: Ordering
    """The ordering in effect now."""
    waiting: int
    """Messages that must be settled first; 0 if the change is made."""


def question(keys: PartitionKeys, group: str) -> Command:
    """Return the command whose reply `answer` reads."""
    return ("HGET", keys.state(group), FIELD)


def answer(reply: Any, declared: Ordering) -> Ordering:
    """Return the ordering in effect: the declared one if none that can be read is recorded."""
    return next((ordering for ordering in ORDERINGS if reply == ordering.encode()), declared)


def in_effect(bus: Bus, ref: GroupPartition, declared: Ordering) -> Ordering:
    """Return the ordering in effect in one partition. Raises BusUnavailable."""
    return read(bus, [(ref, declared)])[ref]


def read(bus: Bus, refs: Iterable[tuple[GroupPartition, Ordering]]) -> dict[GroupPartition, Ordering]:
    """Return the orderings in effect, in one round trip; `refs` come with the declared ones.

    Raises BusUnavailable.
    """
    pairs = list(refs)
    asked = [question(_keys(bus, ref), ref.group) for ref, _ in pairs]
    replies = bus.client.pipe(asked) if asked else []
    # A key of another type says nothing; whoever works there finds it, and tells of it.
    return {
        ref: declared if is_of_one_partition(reply) else answer(check(reply), declared)
        for (ref, declared), reply in zip(pairs, replies, strict=True)
    }


def pin(client: Client, partitions: Iterable[PartitionKeys], group: str, ordering: Ordering) -> None:
    """Record this ordering wherever none is recorded, before another one is declared.

    It works while memory is full. Raises BusUnavailable; then the other one must not be declared.
    """
    calls = [([keys.state(group)], [FIELD, ordering, "1"]) for keys in partitions]
    for reply in commands.run_many(client, "declare", calls):
        if not is_of_one_partition(reply):
            check(reply)


def change(bus: Bus, changes: Sequence[tuple[GroupPartition, Ordering, Ordering]]) -> list[Change]:
    """Put other orderings into effect wherever nothing waits. Raises BusUnavailable.

    `changes`: where, the ordering in effect, and the other one.
    """
    asked = [("XINFO", "CONSUMERS", _keys(bus, ref).stream, ref.group) for ref, _, _ in changes]
    calls = []
    for (ref, effect, declared), reply in zip(changes, bus.client.pipe(asked) if asked else [], strict=True):
        keys, group = _keys(bus, ref), ref.group
        consumers = [] if is_nogroup(reply) or is_of_one_partition(reply) else check(reply)
        lanes = sorted({ORDERED_LANE, *(text(fields_of(raw)["name"]) for raw in consumers)})
        own = [keys.stream, keys.retry(group), keys.held(group), keys.state(group)]
        leases = [keys.lease(group, lane) for lane in lanes]
        about = [group, declared, effect, f"free:reordered-{uuid.uuid4().hex}", *lanes]
        calls.append(([*own, *leases], about))
    replies = commands.run_many(bus.client, "reorder", calls) if calls else []
    return [
        Change(ref, answer(check(reply)[0], effect), reply[1])
        for (ref, effect, _), reply in zip(changes, replies, strict=True)
        if not is_of_one_partition(reply)
    ]


def _keys(bus: Bus, ref: GroupPartition) -> PartitionKeys:
    return bus.keys.partition(ref.topic, ref.partition)
