"""Dead letters: what a group gave up on, kept until an operator retries or discards it.

Each partition keeps those of a group in a stream of its own, at most DEAD_LIMIT of them; older ones are
dropped and counted. A letter is addressed by its `Origin`, written `3/1700-0`: the partition, and the id
that the letter (not its message) has. `bus.operating.operate` adds the audit to the verbs here.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from bus.errors import ConfigurationError, UnknownGroup
from bus.format import strangers
from bus.format.letter import DeadLetter, Origin, read
from bus.format.state import read_counter
from bus.moments import moment
from bus.operating import filters
from bus.safety.unreadable import Unreadable
from bus.streams.commands import text
from bus.streams.connect import check, seconds_of
from bus.sums import exact_total

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.format.keys import PartitionKeys
    from bus.streams.wire import Command
    from bus.values import Ordering

__all__ = [
    "Count", "DeadLetter", "Origin", "Selection", "bounded", "count", "count_matching", "find", "get",
    "ordering_of", "partitions",
]  # fmt: skip

#: Letters in one read: each may be as large as MAX_MESSAGE_BYTES.
PAGE = 50
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which dead letters of a group; all of them by default. What is given must all be true."""

    places: tuple[Origin, ...] | None = None
    partition: int | None = None
    key: str | None = None
    reason: str | None = None
    """Text that stands in the reason, in upper or lower case."""
    since: datetime | None = None
    """Died then or later."""
    until: datetime | None = None
    """Died then or earlier, to the millisecond."""
    before: Origin | None = None
    """Comes after this one when the newest are listed first."""

    def __post_init__(self) -> None:
        if self.reason is not None:
            filters.reason(self.reason)

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether a letter matches what only the letter itself can show."""
        if self.key is not None and letter.message.raw.get(b"k") != self.key.encode("utf-8", "replace"):
            return False
        return self.reason is None or self.reason.casefold() in letter.reason.casefold()


@dataclass(frozen=True, slots=True)
class Count:
    """The number of dead letters that a group has here."""

    kept: int
    dropped: int | None
    """Older ones that DEAD_LIMIT has pushed out, ever; None if that cannot be read."""


# ---------------------------------------------------------------------- looking


def count(bus: Bus, topic: str, group: str, every: list[PartitionKeys] | None = None) -> Count:
    """Return how many there are, from one round trip. Raises what `find` raises.

    `every`: as of `partitions`, where the caller has asked already.
    """
    every = partitions(bus, topic, group) if every is None else every
    asked: list[Command] = [("XLEN", keys.dead(group)) for keys in every]
    asked += [("HGET", keys.state(group), "dead_dropped") for keys in every]
    replies = bus.client.pipe(asked)
    sizes = [0 if strangers.stands_at(keys.dead(group), reply) else check(reply)
             for keys, reply in zip(every, replies[: len(every)], strict=True)]  # fmt: skip
    dropped = [_counter(keys.state(group), reply)
               for keys, reply in zip(every, replies[len(every) :], strict=True)]  # fmt: skip
    return Count(sum(sizes), exact_total(dropped))


def _counter(key: str, reply: Any) -> int | None:
    if strangers.stands_at(key, reply):
        return None
    found = read_counter(key, "dead_dropped", check(reply))
    return None if isinstance(found, Unreadable) else found


def count_matching(
    bus: Bus, topic: str, group: str, selection: Selection, every: list[PartitionKeys] | None = None
) -> int:
    """Return how many a selection means. Reads them; raises what `find` raises."""
    return sum(1 for _ in find(bus, topic, group, selection, every=every))


def get(bus: Bus, topic: str, group: str, place: Origin) -> DeadLetter | None:
    """Return one letter; None if it is not there (any more). Raises what `find` raises."""
    return next(find(bus, topic, group, Selection(places=(place,))), None)


def find(
    bus: Bus, topic: str, group: str, selection: Selection | None = None, *, newest_first: bool = False,
    every: list[PartitionKeys] | None = None,
) -> Iterator[DeadLetter]:  # fmt: skip
    """The letters that are meant, partition by partition and oldest first, or the newest of all first.

    Read in pages as they are asked for. Raises UnknownTopic, UnknownGroup, ConfigurationError (no such
    partition) and BusUnavailable, the first three at once. `every`: as of `partitions`, where the caller has
    asked already.
    """
    chosen = selection or Selection()
    every = partitions(bus, topic, group) if every is None else every
    if chosen.partition is not None and not 0 <= chosen.partition < len(every):
        raise ConfigurationError(f"Topic {topic!r} has the partitions 0 to {len(every) - 1}.")
    if chosen.places is not None:
        return _at(bus, topic, group, every, chosen)
    numbers = range(len(every)) if chosen.partition is None else [chosen.partition]
    walks = [_walk(bus, topic, number, every[number].dead(group), chosen, newest_first) for number in numbers]
    if newest_first:
        return heapq.merge(*walks, key=lambda letter: letter.place.order, reverse=True)
    return (letter for walk in walks for letter in walk)


def _at(
    bus: Bus, topic: str, group: str, every: list[PartitionKeys], chosen: Selection
) -> Iterator[DeadLetter]:
    places = [place for place in dict.fromkeys(chosen.places or ()) if place.partition < len(every)]
    for some in _chunks(places, PAGE):
        asked = [("XRANGE", every[place.partition].dead(group), place.id, place.id) for place in some]
        for place, reply in zip(some, bus.client.pipe(asked), strict=True):
            if strangers.stands_at(every[place.partition].dead(group), reply):
                continue
            found = [read(topic, place.partition, entry) for entry in check(reply)]
            yield from filter(chosen.matches, found)


def _walk(
    bus: Bus, topic: str, partition: int, key: str, chosen: Selection, newest_first: bool
) -> Iterator[DeadLetter]:
    """Yield the letters of one partition, in pages."""
    low, high = _bounds(partition, chosen)
    while True:
        ends = ("XREVRANGE", key, high, low) if newest_first else ("XRANGE", key, low, high)
        reply = bus.client.pipe([(*ends, "COUNT", PAGE)])[0]
        if strangers.stands_at(key, reply):
            return
        entries = check(reply)
        yield from filter(chosen.matches, (read(topic, partition, entry) for entry in entries))
        if len(entries) < PAGE:
            return
        last = f"({text(entries[-1][0])}"
        low, high = (low, last) if newest_first else (last, high)


def _bounds(partition: int, chosen: Selection) -> tuple[str, str]:
    low = "-" if chosen.since is None else str(_milliseconds(chosen.since))
    high = "+" if chosen.until is None else str(_milliseconds(chosen.until))
    if chosen.before is not None:
        shut = "" if partition < chosen.before.partition else "("
        high = f"{shut}{chosen.before.id}"
    return low, high


def _milliseconds(moment: datetime) -> int:
    return max(0, int(moment.timestamp() * 1000))


def ordering_of(bus: Bus, topic: str, group: str) -> Ordering | None:
    try:
        return bus.registry.group(topic, group).ordering
    except UnknownGroup:
        return None


def bounded(bus: Bus, selection: Selection) -> Selection:
    """Return the same selection without what dies from now on, so that a message that fails again is not met
    again.
    """
    if selection.until is not None:
        return selection
    (clock,) = bus.client.pipe([("TIME",)])
    return replace(selection, until=moment(seconds_of(clock) * 1000))


def partitions(bus: Bus, topic: str, group: str) -> list[PartitionKeys]:
    """Return the keys of all partitions. Raises UnknownTopic, ForeignData, UnknownGroup (and no letters)."""
    spec = bus.registry.stored(topic)
    every = [bus.keys.partition(topic, number) for number in range(spec.partitions)]
    if ordering_of(bus, topic, group) is None and not any(
        map(check, bus.client.pipe([("EXISTS", keys.dead(group)) for keys in every]))
    ):
        raise UnknownGroup(topic, group)
    return every


def _chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
