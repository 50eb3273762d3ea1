"""The ordering of a group that is in effect in a partition, which may not yet be the one that is declared.

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

#: The field of a group's state that holds it.
FIELD = "ordering"


class Place(NamedTuple):
    """One group in one partition."""

    topic: str
    group: str
    partition: int


@dataclass(frozen=True, slots=True)
class Change:
    """The result of a change of ordering in one place."""

    place: Place
    effect: Ordering
    """The ordering in effect now."""
    waiting: int
    """Messages that must be settled first; 0 if the change is made."""


def question(keys: PartitionKeys, group: str) -> Command:
    """Return the command whose reply `answer` reads."""
    return ("HGET", keys.state(group), FIELD)


def answer(reply: Any, declared: Ordering) -> Ordering:
    """Return the ordering in effect: the declared one if none is recorded, or the record is unreadable."""
    return next((one for one in ORDERINGS if reply == one.encode()), declared)


def in_effect(bus: Bus, place: Place, declared: Ordering) -> Ordering:
    """Return the ordering that is in effect in one partition. Raises BusUnavailable."""
    return read(bus, [(place, declared)])[place]


def read(bus: Bus, places: Iterable[tuple[Place, Ordering]]) -> dict[Place, Ordering]:
    """Return the ordering in effect in each place, given the declared one; one round trip. Raises
    BusUnavailable.
    """
    wanted = list(places)
    asked = [question(_keys(bus, place), place.group) for place, _ in wanted]
    replies = bus.client.pipe(asked) if asked else []
    # A key of another type says nothing; whoever works there finds it, and tells of it.
    return {
        place: declared if is_of_one_partition(reply) else answer(check(reply), declared)
        for (place, declared), reply in zip(wanted, replies, strict=True)
    }


def pin(client: Client, partitions: Iterable[PartitionKeys], group: str, ordering: Ordering) -> None:
    """Record that this ordering is in effect wherever none is recorded: what is declared changes now.

    Works while memory is full. Raises BusUnavailable; then nothing may be declared otherwise.
    """
    calls = [([keys.state(group)], [FIELD, ordering, "1"]) for keys in partitions]
    for reply in commands.run_many(client, "declare", calls):
        if not is_of_one_partition(reply):
            check(reply)


def change(bus: Bus, places: Sequence[tuple[Place, Ordering, Ordering]]) -> list[Change]:
    """Put the wanted ordering into effect wherever nothing waits. Raises BusUnavailable.

    `places`: each with the ordering that was in effect and the one that is wanted.
    """
    asked = [("XINFO", "CONSUMERS", _keys(bus, place).stream, place.group) for place, _, _ in places]
    calls = []
    for (place, effect, wanted), reply in zip(places, bus.client.pipe(asked) if asked else [], strict=True):
        keys, group = _keys(bus, place), place.group
        known = [] if is_nogroup(reply) or is_of_one_partition(reply) else check(reply)
        lanes = sorted({ORDERED_LANE, *(text(fields_of(raw)["name"]) for raw in known)})
        own = [keys.stream, keys.retry(group), keys.held(group), keys.state(group)]
        leases = [keys.lease(group, lane) for lane in lanes]
        about = [group, wanted, effect, f"free:reordered-{uuid.uuid4().hex}", *lanes]
        calls.append(([*own, *leases], about))
    replies = commands.run_many(bus.client, "reorder", calls) if calls else []
    return [
        Change(place, answer(check(reply)[0], effect), reply[1])
        for (place, effect, _), reply in zip(places, replies, strict=True)
        if not is_of_one_partition(reply)
    ]


def _keys(bus: Bus, place: Place) -> PartitionKeys:
    return bus.keys.partition(place.topic, place.partition)
