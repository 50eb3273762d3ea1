"""Finds dead letters: the messages that a group gave up on, kept until an operator retries or discards them.

Each partition keeps those of a group in a stream of its own, at most DEAD_LIMIT of them; older ones are
dropped and counted. A letter is addressed by its `Origin`, written `3/1700-0`: the partition, and the id
that the letter (not its message) has. `bus.operating.fates` retries and discards them.
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
LETTERS_A_READ = 50

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Says which dead letters of a group are meant: all, or those that match all that is given."""

    places: tuple[Origin, ...] | None = None
    partition: int | None = None
    key: str | None = None
    reason: str | None = None
    """A text that stands in the reason, in upper or lower case."""
    since: datetime | None = None
    """The message died then or later."""
    until: datetime | None = None
    """The message died then or earlier, to the millisecond."""
    before: Origin | None = None
    """The letter comes after this one when the newest are listed first."""

    def __post_init__(self) -> None:
        if self.reason is not None:
            filters.reason(self.reason)

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether a letter has the key and the reason that are asked for."""
        if self.key is not None and letter.message.raw.get(b"k") != self.key.encode("utf-8", "replace"):
            return False
        return self.reason is None or self.reason.casefold() in letter.reason.casefold()


@dataclass(frozen=True, slots=True)
class Count:
    """How many dead letters a group has in a topic."""

    kept: int
    dropped: int | None
    """Older letters that DEAD_LIMIT has ever pushed out; None if that cannot be read."""


# ---------------------------------------------------------------------- looking


def count(bus: Bus, topic: str, group: str, all_keys: list[PartitionKeys] | None = None) -> Count:
    """Return how many there are, from one round trip. Raises what `find` raises.

    `all_keys`: what `partitions` returns, if the caller has asked already.
    """
    all_keys = partitions(bus, topic, group) if all_keys is None else all_keys
    asked: list[Command] = [("XLEN", keys.dead(group)) for keys in all_keys]
    asked += [("HGET", keys.state(group), "dead_dropped") for keys in all_keys]
    replies = bus.client.pipe(asked)
    sizes = [0 if strangers.stands_at(keys.dead(group), reply) else check(reply)
             for keys, reply in zip(all_keys, replies[: len(all_keys)], strict=True)]  # fmt: skip
    dropped = [_counter(keys.state(group), reply)
               for keys, reply in zip(all_keys, replies[len(all_keys) :], strict=True)]  # fmt: skip
    return Count(sum(sizes), exact_total(dropped))


def _counter(key: str, reply: Any) -> int | None:
    if strangers.stands_at(key, reply):
        return None
    counter = read_counter(key, "dead_dropped", check(reply))
    return None if isinstance(counter, Unreadable) else counter


def count_matching(
    bus: Bus, topic: str, group: str, selection: Selection, all_keys: list[PartitionKeys] | None = None
) -> int:
    """Return how many letters a selection means. Reads them all; raises what `find` raises."""
    return sum(1 for _ in find(bus, topic, group, selection, all_keys=all_keys))


def get(bus: Bus, topic: str, group: str, place: Origin) -> DeadLetter | None:
    """Return one letter; None if it is not there. Raises what `find` raises."""
    return next(find(bus, topic, group, Selection(places=(place,))), None)


def find(
    bus: Bus, topic: str, group: str, selection: Selection | None = None, *, newest_first: bool = False,
    all_keys: list[PartitionKeys] | None = None,
) -> Iterator[DeadLetter]:  # fmt: skip
    """Yield the letters that are meant, partition by partition and oldest first, or the newest of all first.

    They are read in pages as they are asked for. Raises UnknownTopic, UnknownGroup and ConfigurationError (no
    such partition) at once, and BusUnavailable. `all_keys`: what `partitions` returns, if the caller has
    asked already.
    """
    chosen = selection or Selection()
    all_keys = partitions(bus, topic, group) if all_keys is None else all_keys
    if chosen.partition is not None and not 0 <= chosen.partition < len(all_keys):
        raise ConfigurationError(f"Topic {topic!r} has the partitions 0 to {len(all_keys) - 1}.")
    if chosen.places is not None:
        return _at(bus, topic, group, all_keys, chosen)
    numbers = range(len(all_keys)) if chosen.partition is None else [chosen.partition]
    walks = [
        _walk(bus, topic, number, all_keys[number].dead(group), chosen, newest_first) for number in numbers
    ]
    if newest_first:
        return heapq.merge(*walks, key=lambda letter: letter.place.order, reverse=True)
    return (letter for walk in walks for letter in walk)


def _at(
    bus: Bus, topic: str, group: str, all_keys: list[PartitionKeys], chosen: Selection
) -> Iterator[DeadLetter]:
    """Yield the letters at the places that are chosen."""
    places = [place for place in dict.fromkeys(chosen.places or ()) if place.partition < len(all_keys)]
    for page in _pages(places, LETTERS_A_READ):
        asked = [("XRANGE", all_keys[place.partition].dead(group), place.id, place.id) for place in page]
        for place, reply in zip(page, bus.client.pipe(asked), strict=True):
            if strangers.stands_at(all_keys[place.partition].dead(group), reply):
                continue
            letters = [read(topic, place.partition, entry) for entry in check(reply)]
            yield from filter(chosen.matches, letters)


def _walk(
    bus: Bus, topic: str, partition: int, key: str, chosen: Selection, newest_first: bool
) -> Iterator[DeadLetter]:
    """Yield the letters of one partition, in pages."""
    low, high = _bounds(partition, chosen)
    while True:
        ends = ("XREVRANGE", key, high, low) if newest_first else ("XRANGE", key, low, high)
        reply = bus.client.pipe([(*ends, "COUNT", LETTERS_A_READ)])[0]
        if strangers.stands_at(key, reply):
            return
        entries = check(reply)
        yield from filter(chosen.matches, (read(topic, partition, entry) for entry in entries))
        if len(entries) < LETTERS_A_READ:
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
    """Return the declared ordering of a group; None if there is no such group."""
    try:
        return bus.registry.group(topic, group).ordering
    except UnknownGroup:
        return None


def bounded(bus: Bus, selection: Selection) -> Selection:
    """Return the same selection without what dies from now on.

    So a message that fails again is not met again.
    """
    if selection.until is not None:
        return selection
    (clock,) = bus.client.pipe([("TIME",)])
    return replace(selection, until=moment(seconds_of(clock) * 1000))


def partitions(bus: Bus, topic: str, group: str) -> list[PartitionKeys]:
    """Return the keys of all partitions.

    Raises UnknownTopic, ForeignData, and UnknownGroup if there is neither the group nor a letter of it.
    """
    spec = bus.registry.stored(topic)
    all_keys = [bus.keys.partition(topic, number) for number in range(spec.partitions)]
    if ordering_of(bus, topic, group) is None and not any(
        map(check, bus.client.pipe([("EXISTS", keys.dead(group)) for keys in all_keys]))
    ):
        raise UnknownGroup(topic, group)
    return all_keys


def _pages(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
