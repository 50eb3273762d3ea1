"""Dead letters: what a group gave up on, kept until an operator retries or discards it.

Each partition keeps those of a group in a stream of its own, at most DEAD_LIMIT of them; older ones are
dropped and counted. A letter is addressed by its `Origin`, written `3/1700-0`: the partition, and the id
that the letter (not its message) has. `bus.operating.operate` adds the audit to the verbs here.
"""

from __future__ import annotations

import heapq
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from bus.errors import ConfigurationError, UnknownGroup
from bus.format import strangers
from bus.format.lane_id import ORDERED_LANE
from bus.format.letter import DeadLetter, Origin, read
from bus.format.state import read_counter
from bus.moments import moment
from bus.operating import filters
from bus.safety.unreadable import Unreadable
from bus.safety.verbs import verb
from bus.streams.commands import fields_of, is_nogroup, run, text
from bus.streams.connect import check, seconds_of
from bus.sums import exact_total
from bus.topics.reordering import GroupPartition, in_effect

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.format.keys import PartitionKeys
    from bus.streams.wire import Command
    from bus.values import Ordering

__all__ = [
    "BATCH", "Count", "DeadLetter", "Fate", "LetterRef", "Origin", "Selection", "Tally",
    "batches", "bounded", "count", "count_matching", "discard", "find", "get", "partitions", "retry",
]  # fmt: skip

#: Letters in one read: each may be as large as MAX_MESSAGE_BYTES.
PAGE = 50
#: Letters that one script gives back: a few milliseconds of the server's time.
CHUNK = 100
#: Letters of one partition that are sent to be retried or discarded in one write.
BATCH = 1000

#: The code of redrive.lua for a letter that it did not come to: large ones are dealt with a few at a time.
_LATER = -2
#: Slots of one worker at most that are believed.
_MAX_SLOTS = 1000

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
class LetterRef:
    """What is kept of a letter that is dealt with: never its value."""

    place: Origin
    message_id: str
    reason: str


class Fate(Enum):
    """The fate of a dead letter that was to be retried or discarded."""

    WAITING = 1
    """Its message waits for the group again."""
    COPIED = 2
    """The original was trimmed, so the kept copy was added to the topic, for this group alone."""
    DISCARDED = 3
    GONE = 0
    """It was not there any more: somebody else was faster, or DEAD_LIMIT was."""
    KEPT = -1
    """It is still a dead letter: Redis does not have the stream or the group, or no copy of the message."""


@dataclass(slots=True)
class Tally:
    """Counts of letters, by what became of them."""

    waiting: int = 0
    copied: int = 0
    discarded: int = 0
    gone: int = 0
    kept: int = 0

    def add_all(self, fates: Iterable[Fate]) -> None:
        for fate in fates:
            name = fate.name.lower()
            setattr(self, name, getattr(self, name) + 1)

    def with_missing(self, selection: Selection) -> Tally:
        """Return the tally at the end: letters that were named and not found count as gone."""
        if selection.places is not None:
            self.gone += len(set(selection.places)) - self.total
        return self

    @property
    def retried(self) -> int:
        return self.waiting + self.copied

    @property
    def total(self) -> int:
        return self.waiting + self.copied + self.discarded + self.gone + self.kept


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


# ---------------------------------------------------------------------- verbs


def bounded(bus: Bus, selection: Selection) -> Selection:
    """Return the same selection without what dies from now on, so that a message that fails again is not met
    again.
    """
    if selection.until is not None:
        return selection
    (clock,) = bus.client.pipe([("TIME",)])
    return replace(selection, until=moment(seconds_of(clock) * 1000))


def batches(letters: Iterable[DeadLetter]) -> Iterator[list[LetterRef]]:
    """Yield letters as they are to be retried or discarded: at most BATCH at a time, of one partition."""
    batch: list[LetterRef] = []
    for letter in letters:
        if batch and (len(batch) == BATCH or batch[0].place.partition != letter.place.partition):
            yield batch
            batch = []
        batch.append(LetterRef(letter.place, letter.message.id, letter.reason))
    if batch:
        yield batch


@verb("retry dead letters")
def retry(bus: Bus, topic: str, group: str, letters: Sequence[LetterRef]) -> list[Fate]:
    """Give letters of one partition back to their group alone; what became of each.

    Each is removed only after its message waits again, in one script: a crash leaves it in exactly one
    of both places, and of several who retry it one does. Raises BusUnavailable or ReplyLost; then some
    may have been retried, and the same call again counts them as gone.
    """
    if not letters:
        return []
    keys = bus.keys.partition(topic, letters[0].place.partition)
    ordering = _ordering(bus, topic, group)
    if ordering is None:
        return [Fate.KEPT] * len(letters)  # nobody would ever be given them
    ordering = in_effect(bus, GroupPartition(topic, group, letters[0].place.partition), ordering)
    lanes = _lanes(bus, keys.stream, group) if ordering == "none" else [ORDERED_LANE]
    names = [keys.stream, keys.retry(group), keys.held(group), keys.state(group), keys.dead(group),
             *(keys.lease(group, lane) for lane in lanes)]  # fmt: skip
    fates: dict[str, Fate] = {}
    left = [one.place.id for one in letters]
    while left:  # one script in a write: between two of them the server has time for others
        about = [group, ordering, f"free:operator-{uuid.uuid4().hex}", str(len(lanes)), *lanes]
        some, left = left[:CHUNK], left[CHUNK:]
        codes = run(bus.client, "redrive", names, [*about, *some])
        fates |= {id: Fate(code) for id, code in zip(some, codes, strict=True) if code != _LATER}
        left[:0] = [id for id, code in zip(some, codes, strict=True) if code == _LATER]
    bus.registry.hint("release")  # workers take freed lanes again at once, and see what waits there
    return [fates[one.place.id] for one in letters]


@verb("discard dead letters")
def discard(bus: Bus, topic: str, group: str, letters: Sequence[LetterRef]) -> list[Fate]:
    """Remove letters of one partition for good; what became of each. Works while memory is full.

    Raises BusUnavailable or ReplyLost, as `retry`.
    """
    commands = [
        ("XDEL", bus.keys.partition(topic, one.place.partition).dead(group), one.place.id) for one in letters
    ]
    return [Fate.DISCARDED if check(reply) else Fate.GONE for reply in bus.client.pipe(commands)]


def _lanes(bus: Bus, stream: str, group: str) -> list[str]:
    """The lanes that an unordered group may have here: one for each pool slot of a worker, idle or not.

    Redis 7.0 knows a lane only when it was given something, and a pool may have grown since it started.
    """
    table, consumers = bus.client.pipe([("HGETALL", bus.keys.workers), ("XINFO", "CONSUMERS", stream, group)])
    lanes = {
        f"{incarnation}.{slot}"
        for incarnation, raw in fields_of(
            [] if strangers.stands_at(bus.keys.workers, table) else check(table)
        ).items()
        for slot in range(_processes(raw))
    }
    if not is_nogroup(consumers):
        lanes.update(text(fields_of(raw)["name"]) for raw in check(consumers))
    return sorted(lanes)


def _processes(raw: bytes) -> int:
    """Return how many slots a worker says that it has; 0 if its record cannot be read."""
    try:
        known = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return 0
    found = known.get("processes") if isinstance(known, dict) else None
    return max(0, min(found, _MAX_SLOTS)) if type(found) is int else 0


def _ordering(bus: Bus, topic: str, group: str) -> Ordering | None:
    try:
        return bus.registry.group(topic, group).ordering
    except UnknownGroup:
        return None


def partitions(bus: Bus, topic: str, group: str) -> list[PartitionKeys]:
    """Return the keys of all partitions. Raises UnknownTopic, ForeignData, UnknownGroup (and no letters)."""
    spec = bus.registry.stored(topic)
    every = [bus.keys.partition(topic, number) for number in range(spec.partitions)]
    if _ordering(bus, topic, group) is None and not any(
        map(check, bus.client.pipe([("EXISTS", keys.dead(group)) for keys in every]))
    ):
        raise UnknownGroup(topic, group)
    return every


def _chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
