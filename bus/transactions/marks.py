"""Marks: up to which id a group has settled everything, but for what waits for a retry or is held back.

Turns keep them in Redis, where a group that was lost (XGROUP DESTROY, DEL) is made again at its mark.
Upkeep copies them to the database, so that a server that comes back with older data does not make the
workers handle again what was settled since: at most what was settled after the last copy comes again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.db import connections, router

from bus.databases import is_configured
from bus.errors import BusError, ForeignData, ServerError
from bus.format.keys import PartitionKeys
from bus.format.state import read_era
from bus.format.strangers import stands_at
from bus.safety.complaints import Complaints
from bus.safety.unreadable import Unreadable, shown, tell
from bus.streams import commands, counting
from bus.streams.connect import check
from bus.topics.registry import GroupSpec
from bus.values import Ordering, id_pair, known_id

if TYPE_CHECKING:
    from bus.client import Bus

_complaints = Complaints(logging.getLogger("bus.marks"))

#: How often marks are copied. Seconds; at most so much of what was settled comes again (see above).
COPY_SECONDS = 10.0
#: Pending messages that one script looks at: a few milliseconds of the server's time.
PAGE = 500
#: Marks that one command reads.
_AT_ONCE = 1_000
#: How often a count may turn out to be of a stream that is not there any more.
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Place:
    """One group in one partition."""

    topic: str
    partition: int
    group: str
    born: str
    """Which group of that name: a mark of one that was deleted says nothing of the next."""


def copy(bus: Bus, known: dict[Place, str] | None = None) -> int:
    """Copy the marks of all groups to the database, if there is one; how many there are.

    `known`: what the same caller has copied, which is brought up to date: only what has changed is written.
    Raises BusUnavailable, or the database's errors.
    """
    from bus.models import MarkCopy  # a worker imports this module before Django's apps are ready

    groups = bus.registry.groups()
    note_unordered(bus, [group for group in groups if group.ordering == "none"])
    if not is_configured(router.db_for_write(MarkCopy)):
        return 0
    places = list(_places(bus, groups))
    marks = {place: mark for place, mark in zip(places, _marks(bus, places), strict=True) if mark is not None}
    before = {} if known is None else known
    changed = _with_eras(bus, [place for place, mark in marks.items() if before.get(place) != mark])
    safe = _below_what_waits(bus, {place: mark for place, (_, mark) in changed.items()})
    rows = [
        MarkCopy(prefix=bus.settings.prefix, topic=place.topic, partition=place.partition, group=place.group,
                 born=place.born, era=era, position=mark, safe=safe[place])
        for place, (era, mark) in changed.items()
        if place in safe
    ]  # fmt: skip
    # MariaDB and MySQL are not told which unique key is meant; there is one besides the primary key.
    named = connections[router.db_for_write(MarkCopy)].features.supports_update_conflicts_with_target
    MarkCopy.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["prefix", "topic", "partition", "group"] if named else None,
        update_fields=["born", "era", "position", "safe", "copied"],
    )
    if known is not None:
        known.clear()
        # Where something waits the mark is looked at again, though it is the same.
        known.update(marks | safe)
    return len(marks)


def _marks(bus: Bus, places: list[Place]) -> list[str | None]:
    """The marks, in few commands: they are asked for all the time. None also where what is there is no id."""
    names = [_keys(bus, place).mark(place.group) for place in places]
    asked = [("MGET", *names[at : at + _AT_ONCE]) for at in range(0, len(names), _AT_ONCE)]
    marks = [mark for reply in bus.client.pipe(asked) for mark in check(reply)]
    return [_position(*each) for each in zip(names, marks, strict=True)]


def _with_eras(bus: Bus, places: list[Place]) -> dict[Place, tuple[str, str]]:
    """The eras and the marks of these, without those whose mark is gone by now or whose era cannot be read.

    The eras are read first: a mark of the era before must never go for one of the next, since nothing of a
    new stream is settled by it.
    """
    states = [_keys(bus, place).state(place.group) for place in places]
    replies = bus.client.pipe([("HGET", state, "era") for state in states]) if places else []
    found: dict[Place, tuple[str, str]] = {}
    for place, state, reply, mark in zip(places, states, replies, _marks(bus, places), strict=True):
        era = None if stands_at(state, reply) else read_era(state, check(reply))
        if isinstance(era, str) and mark is not None:
            found[place] = era, mark
    return found


def _below_what_waits(bus: Bus, marks: dict[Place, str]) -> dict[Place, str]:
    """The same, but nowhere above a message that is pending.

    A mark says that all below it is settled but for what waits, and Redis knows what does. A Redis with older
    data knows nothing of what was held back since. Asked for after the marks were read: what is pending above
    a mark says nothing of it.
    """
    asked = [("XPENDING", _keys(bus, place).stream, place.group) for place in marks]
    found = {}
    for (place, mark), reply in zip(marks.items(), bus.client.pipe(asked) if asked else [], strict=True):
        if commands.is_nogroup(reply) or commands.is_of_one_partition(reply):
            continue  # of a group that is not there nothing is known
        count, oldest = check(reply)[:2]
        found[place] = min(mark, _before(oldest), key=id_pair) if count else mark
    return found


def _before(raw: bytes) -> str:
    """The greatest id before this one."""
    ms, seq = id_pair(raw)
    if seq:
        return f"{ms}-{seq - 1}"
    return f"{ms - 1}-{2**64 - 1}" if ms else "0-0"


def _position(key: str, raw: bytes | None) -> str | None:
    position = None if raw is None else known_id(raw)
    if raw is not None and position is None:
        tell(Unreadable(key, "", shown(raw), "is no id"))
    return position


def advance(bus: Bus) -> int:
    """Move groups that are behind their copied marks forward to them, if there is a database.

    Returns how many messages will not be given again. Raises BusUnavailable, or the database's errors.
    """
    from bus.models import MarkCopy  # as in copy()

    if not is_configured(router.db_for_read(MarkCopy)):
        return 0
    copies = {
        Place(row.topic, row.partition, row.group, row.born): (row.safe, row.era)
        for row in MarkCopy.objects.filter(prefix=bus.settings.prefix)
        if known_id(row.safe)
    }
    places = [place for place in _places(bus, bus.registry.groups()) if place in copies]
    behind = [
        place
        for place, mark in zip(places, _marks(bus, places), strict=True)
        if mark is None or id_pair(mark) < id_pair(copies[place][0])
    ]
    orderings = {(group.topic, group.name): group.ordering for group in bus.registry.groups()}
    leases: dict[tuple[str, str], list[str]] = {}
    settled = 0
    for place in behind:
        named = place.topic, place.group
        if named not in leases:
            leases[named] = commands.scan(bus.client, bus.keys.leases(*named))
        own = _keys(bus, place).lease(place.group, "")
        held = [lease for lease in leases[named] if lease.startswith(own)]
        try:
            settled += advance_place(bus, place, *copies[place], orderings.get(named, "key"), held)
        except (ForeignData, ServerError) as error:
            _complain(place, error)
    return settled


def advance_place(bus: Bus, place: Place, mark: str, era: str, ordering: Ordering, leases: list[str]) -> int:
    """Move a group forward in one partition, if it is behind; how many messages will not be given again.

    `era`: of the mark, which says nothing in another one: there the ids stand for other messages.
    `leases`: the keys of those of its lanes there. In portions, and right after each: a group moves with the
    last. Raises BusUnavailable, or BusError where the stream is made anew all the time.
    """
    keys, group = _keys(bus, place), place.group
    waiting = [keys.retry(group), keys.held(group), keys.state(group)]
    own = [keys.stream, keys.mark(group), *waiting, *leases]
    for _ in range(_ATTEMPTS):
        known = _Known.ask(bus, keys, group)
        if known is None or known.era != era:
            return 0
        if id_pair(known.position) >= min(id_pair(mark), id_pair(known.last)):
            return 0
        target = min(mark, known.last, key=id_pair)
        offset = known.added - counting.count(bus.client, keys.stream, target, known.basis or "+")
        settled = counting.count(bus.client, keys.stream, known.position, target)
        at = "-"
        while at and at != "count":
            args = [group, target, str(offset), known.basis, ordering, at, str(PAGE), era]
            some, raw = commands.run(bus.client, "advance", own, args)
            settled, at = settled + some, commands.text(raw)
        if not at:
            return settled
    raise BusError(f"Group {group!r} of {keys.stream} cannot be moved to its mark: the stream is made anew.")


@dataclass(frozen=True, slots=True)
class _Known:
    """What the server says of a group, and of the stream that it is on."""

    position: str
    last: str
    """The greatest id that the stream gave."""
    basis: str
    """The last message that is there; "" if there is none."""
    added: int
    era: str

    @classmethod
    def ask(cls, bus: Bus, keys: PartitionKeys, group: str) -> _Known | None:
        """None if there is no such group, or its era cannot be read."""
        stream, state = keys.stream, keys.state(group)
        asked = [("XINFO", "STREAM", stream), ("XINFO", "GROUPS", stream), ("HGET", state, "era")]
        raw, groups, raw_era = bus.client.pipe(asked)
        if commands.is_nogroup(raw):
            return None
        info = commands.fields_of(check(raw))
        named = (commands.fields_of(each) for each in check(groups))
        found = next((each for each in named if commands.text(each["name"]) == group), None)
        era = read_era(state, check(raw_era))
        if found is None or isinstance(era, Unreadable):
            return None
        position, last = commands.text(found["last-delivered-id"]), commands.text(info["last-generated-id"])
        basis = commands.text(info["last-entry"][0]) if info["last-entry"] else ""
        return cls(position, last, basis, info["entries-added"], era)


def note_unordered(bus: Bus, groups: list[GroupSpec]) -> None:
    """Find the marks of unordered groups."""
    left = dict.fromkeys(_places(bus, groups), "-")
    while left:
        calls: list[tuple[list[str], list[str]]] = []
        for place, at in left.items():
            keys = _keys(bus, place)
            own = [keys.stream, keys.mark(place.group), keys.retry(place.group)]
            calls.append((own, [place.group, at, str(PAGE)]))
        replies = dict(zip(left, commands.run_many(bus.client, "mark", calls), strict=True))
        for place, reply in list(replies.items()):
            if commands.is_of_one_partition(reply):
                _complain(place, reply)
                del replies[place]
        left = {
            place: commands.text(reply[1])
            for place, reply in replies.items()
            if check(reply) is not None and reply[1]
        }


def _complain(place: Place, error: object) -> None:
    where = f"{place.topic}/{place.partition} for {place.group}"
    _complaints.say(place, "The mark of %s is passed over: %s. See `bus doctor`.", where, error)


def _places(bus: Bus, groups: list[GroupSpec]) -> Iterator[Place]:
    specs = bus.registry.specs()
    for group in groups:
        if group.topic in specs:
            for number in range(specs[group.topic].partitions):
                yield Place(group.topic, number, group.name, group.born)


def _keys(bus: Bus, place: Place) -> PartitionKeys:
    return bus.keys.partition(place.topic, place.partition)
