"""Marks: up to which id a group has settled everything, but for what waits for a retry or is held back.

Turns keep them in Redis, where a group that was lost (XGROUP DESTROY, DEL) is made again at its mark.
Upkeep copies them to the database, so that a server that comes back with older data does not make the
workers handle again what was settled since: at most what was settled after the last copy comes again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from django.db import connections, router

from bus.client import Bus
from bus.keys import PartitionKeys
from bus.registry import GroupSpec
from bus.streams import commands
from bus.streams.connect import check
from bus.values import id_pair

#: How often marks are copied. Seconds; at most so much of what was settled comes again (see above).
COPY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """One group in one partition."""

    topic: str
    partition: int
    group: str
    born: str
    """Which group of that name: a mark of one that was deleted says nothing of the next."""


def copy(bus: Bus) -> int:
    """Copy the marks of all groups to the database; how many there are.

    Raises BusUnavailable, or the database's errors.
    """
    from bus.models import MarkCopy  # a worker imports this module before Django's apps are ready

    groups = bus.registry.groups()
    _note_unordered(bus, [group for group in groups if group.ordering == "none"])
    places = list(_places(bus, groups))
    marks = bus.client.pipe([("GET", _keys(bus, place).mark(place.group)) for place in places])
    rows = [
        MarkCopy(prefix=bus.settings.prefix, topic=place.topic, partition=place.partition, group=place.group,
                 born=place.born, position=check(mark).decode())
        for place, mark in zip(places, marks, strict=True)
        if mark is not None
    ]  # fmt: skip
    # MariaDB and MySQL are not told which unique key is meant; there is one besides the primary key.
    named = connections[router.db_for_write(MarkCopy)].features.supports_update_conflicts_with_target
    MarkCopy.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["prefix", "topic", "partition", "group"] if named else None,
        update_fields=["born", "position", "copied"],
    )
    return len(rows)


def advance(bus: Bus) -> int:
    """Move groups that are behind their copied marks forward to them.

    Returns how many messages will not be given again. Raises BusUnavailable, or the database's errors.
    """
    from bus.models import MarkCopy  # as in copy()

    copies = {
        Place(row.topic, row.partition, row.group, row.born): row.position
        for row in MarkCopy.objects.filter(prefix=bus.settings.prefix)
    }
    places = [place for place in _places(bus, bus.registry.groups()) if place in copies]
    marks = bus.client.pipe([("GET", _keys(bus, place).mark(place.group)) for place in places])
    behind = [
        place
        for place, mark in zip(places, marks, strict=True)
        if check(mark) is None or id_pair(mark) < id_pair(copies[place])
    ]
    return sum(_advance(bus, place, copies[place]) for place in behind)


def _advance(bus: Bus, place: Place, mark: str) -> int:
    keys = _keys(bus, place)
    leases = commands.scan(bus.client, keys.lease(place.group, "*"))
    waiting = [keys.retry(place.group), keys.held(place.group), keys.state(place.group)]
    own = [keys.stream, keys.mark(place.group), *waiting, *leases]
    return int(commands.run(bus.client, "advance", own, [place.group, mark]))


def _note_unordered(bus: Bus, groups: list[GroupSpec]) -> None:
    calls: list[tuple[list[str], list[str]]] = []
    for place in _places(bus, groups):
        keys = _keys(bus, place)
        own = [keys.stream, keys.mark(place.group), keys.retry(place.group)]
        calls.append((own, [place.group]))
    for reply in commands.run_many(bus.client, "mark", calls):
        check(reply)


def _places(bus: Bus, groups: list[GroupSpec]) -> Iterator[Place]:
    specs = bus.registry.specs()
    for group in groups:
        if group.topic in specs:
            for number in range(specs[group.topic].partitions):
                yield Place(group.topic, number, group.name, group.born)


def _keys(bus: Bus, place: Place) -> PartitionKeys:
    return bus.keys.partition(place.topic, place.partition)
