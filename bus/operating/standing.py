"""The present place of a group in one partition, read in one look, with offsets and ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bus.errors import ForeignData, UnknownGroup
from bus.format.state import read_era
from bus.moments import moment
from bus.safety.unreadable import Unreadable
from bus.streams import counting
from bus.streams.commands import fields_of, is_nogroup, is_of_one_partition, text
from bus.streams.connect import check, seconds_of
from bus.values import id_pair

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.format.keys import PartitionKeys

#: Pending messages that are counted in one round trip.
_COUNTED_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a partition: between two messages."""

    id: str
    """All messages up to this id lie before it."""
    offset: int
    """Offset of the next message."""

    @property
    def time(self) -> datetime | None:
        """The time that the id says; None at the beginning."""
        ms, _ = id_pair(self.id)
        return moment(ms) if ms else None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a group is in one partition, and the partition itself, of one moment."""

    partition: int
    keys: PartitionKeys
    group: str
    others: dict[str, str]
    """Group → position."""
    length: int
    added: int
    first_id: str
    last_id: str
    """Of the last message ever added; "0-0" if there never was one."""
    newest: str
    """Of the last message that is there; "" if none is."""
    now: int
    """Milliseconds since 1970, by the server's clock."""
    era: str
    retrying: int
    held: int
    dead: int
    pending: int

    @property
    def position(self) -> str:
        return self.others[self.group]

    @property
    def first_offset(self) -> int:
        return self.added - self.length

    def point(self, bus: Bus, id: str) -> Point:
        """Return the place after an id, with its offset: how many messages were ever added up to it."""
        if not self.newest or id_pair(id) >= id_pair(self.newest):
            return Point(id, self.added)
        if id_pair(id) < id_pair(self.first_id):
            return Point(id, self.first_offset)
        return Point(id, self.added - counting.count(bus.client, self.keys.stream, id, self.newest))

    def at_offset(self, bus: Bus, offset: int, near: Point) -> Point:
        """Return the place whose next message has this offset, of those that are there.

        `near`: a place that is known: it is counted from there, the beginning, or the end, whichever is near.
        """
        if offset <= self.first_offset or not self.newest:
            return Point("0-0", self.first_offset)
        if offset >= self.added:
            return Point(self.last_id, self.added)
        places = [near, Point("0-0", self.first_offset), Point(self.newest, self.added)]
        start = min(
            (place for place in places if place.offset >= self.first_offset),
            key=lambda place: abs(place.offset - offset),
        )
        return Point(counting.seek(bus.client, self.keys.stream, start.id, offset - start.offset), offset)

    def pending_up_to(self, bus: Bus, id: str) -> int:
        """Return how many messages that are not settled lie up to this id."""
        counted, start = 0, "-"
        while self.pending:
            rows = bus.client.call("XPENDING", self.keys.stream, self.group, start, id, _COUNTED_AT_ONCE)
            counted += len(rows)
            if len(rows) < _COUNTED_AT_ONCE:
                break
            start = f"({text(rows[-1][0])}"
        return counted


def read(bus: Bus, topic: str, group: str, partitions: Iterable[int]) -> Iterator[Standing]:
    """Look at a group in these partitions, in one round trip.

    Raises UnknownGroup, ForeignData (a key cannot be read, or a stream was missing), BusUnavailable.
    """
    numbers = list(partitions)
    asked: list[Any] = [("TIME",)]
    for number in numbers:
        keys = bus.keys.partition(topic, number)
        asked += [
            ("XINFO", "STREAM", keys.stream, "FULL", "COUNT", 1),
            ("XREVRANGE", keys.stream, "+", "-", "COUNT", 1),
            ("HGET", keys.state(group), "era"),
            ("ZCARD", keys.retry(group)),
            ("ZCARD", keys.held(group)),
            ("XLEN", keys.dead(group)),
        ]
    replies = iter(bus.client.pipe(asked))
    now = int(seconds_of(next(replies)) * 1000)
    for number in numbers:
        keys = bus.keys.partition(topic, number)
        raw, newest, raw_era, retrying, held, dead = (next(replies) for _ in range(6))
        if is_nogroup(raw):
            bus.registry.restore_partition(topic, number)
            raise ForeignData(f"The stream of {topic}/{number} was missing, and is made anew: look again.")
        for reply in (raw, newest, raw_era, retrying, held, dead):
            if is_of_one_partition(reply):
                raise ForeignData(f"{keys.stream} cannot be reset: {reply}. See `bus doctor`.")
        info = fields_of(check(raw))
        groups = {text((known := fields_of(one))["name"]): known for one in info["groups"]}
        if group not in groups:
            raise UnknownGroup(topic, group)
        era = read_era(keys.state(group), check(raw_era))
        if isinstance(era, Unreadable):
            raise ForeignData(f"{era}. See `bus doctor`.")
        entries = info["entries"]
        yield Standing(
            partition=number,
            keys=keys,
            group=group,
            others={name: text(known["last-delivered-id"]) for name, known in groups.items()},
            length=info["length"],
            added=info["entries-added"],
            first_id=text(entries[0][0]) if entries else "",
            last_id=text(info["last-generated-id"]),
            newest=text(check(newest)[0][0]) if check(newest) else "",
            now=now,
            era=era,
            retrying=check(retrying),
            held=check(held),
            dead=check(dead),
            pending=groups[group]["pel-count"],
        )
