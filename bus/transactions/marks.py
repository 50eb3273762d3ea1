"""Marks: every message of a group up to this id is settled, except retries and held ones.

What waits for a retry or is held back waits. Turns keep marks in Redis, where a group that is gone (XGROUP
DESTROY, DEL) is made again at its mark. Upkeep copies them to the database, so that a server that comes back
with older data does not make the workers handle again what was settled since: at most what was settled after
the last copy comes again.
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

#: Seconds between two copies. What was settled within them may come again (see above).
COPY_SECONDS = 10.0
#: Pending messages that one script looks at, in a few milliseconds of the server's time.
PENDING_A_SCRIPT = 500
#: Marks that one command reads.
_MARKS_A_COMMAND = 1_000
#: How often a count may turn out to be of a stream that is not there any more.
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class MarkRef:
    """What a mark belongs to: a group in a partition."""

    topic: str
    partition: int
    group: str
    born: str
    """Which group of that name: a mark of one that was deleted says nothing of the next."""


def copy(bus: Bus, copied: dict[MarkRef, str] | None = None) -> int:
    """Copy the marks of all groups to the database, if there is one; return how many there are.

    `copied`: what the caller has copied before, which this brings up to date. Only other marks are written.
    Raises BusUnavailable, or the database's errors.
    """
    from bus.models import MarkCopy  # a worker imports this module before Django's apps are ready

    groups = bus.registry.groups()
    note_unordered(bus, [group for group in groups if group.ordering == "none"])
    if not is_configured(router.db_for_write(MarkCopy)):
        return 0
    refs = list(_refs(bus, groups))
    marks = {ref: mark for ref, mark in zip(refs, _marks(bus, refs), strict=True) if mark is not None}
    before = {} if copied is None else copied
    changed = _with_eras(bus, [ref for ref, mark in marks.items() if before.get(ref) != mark])
    safe = _below_what_waits(bus, {ref: mark for ref, (_, mark) in changed.items()})
    rows = [
        MarkCopy(prefix=bus.settings.prefix, topic=ref.topic, partition=ref.partition, group=ref.group,
                 born=ref.born, era=era, position=mark, safe=safe[ref])
        for ref, (era, mark) in changed.items()
        if ref in safe
    ]  # fmt: skip
    # MariaDB and MySQL are not told which unique key is meant; there is one besides the primary key.
    named = connections[router.db_for_write(MarkCopy)].features.supports_update_conflicts_with_target
    MarkCopy.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["prefix", "topic", "partition", "group"] if named else None,
        update_fields=["born", "era", "position", "safe", "copied"],
    )
    if copied is not None:
        copied.clear()
        # Where something waits the mark is looked at again, though it is the same.
        copied.update(marks | safe)
    return len(marks)


def _marks(bus: Bus, refs: list[MarkRef]) -> list[str | None]:
    """Return the marks, asked for in few commands; None where there is none, or one that is no id."""
    names = [_keys(bus, ref).mark(ref.group) for ref in refs]
    asked = [("MGET", *names[at : at + _MARKS_A_COMMAND]) for at in range(0, len(names), _MARKS_A_COMMAND)]
    marks = [mark for reply in bus.client.pipe(asked) for mark in check(reply)]
    return [_position(name, mark) for name, mark in zip(names, marks, strict=True)]


def _with_eras(bus: Bus, refs: list[MarkRef]) -> dict[MarkRef, tuple[str, str]]:
    """Return era and mark of each, without those whose mark is gone by now or whose era cannot be read.

    The eras are read first: a mark must never be taken for one of the next era, whose messages it says
    nothing of.
    """
    states = [_keys(bus, ref).state(ref.group) for ref in refs]
    replies = bus.client.pipe([("HGET", state, "era") for state in states]) if refs else []
    marked: dict[MarkRef, tuple[str, str]] = {}
    for ref, state, reply, mark in zip(refs, states, replies, _marks(bus, refs), strict=True):
        era = None if stands_at(state, reply) else read_era(state, check(reply))
        if isinstance(era, str) and mark is not None:
            marked[ref] = era, mark
    return marked


def _below_what_waits(bus: Bus, marks: dict[MarkRef, str]) -> dict[MarkRef, str]:
    """Return the marks, each moved below the oldest pending message.

    A mark says that all below it is settled but for what waits, and Redis knows what does. A Redis with older
    data knows nothing of what was held back since. This is asked after the marks were read: what is pending
    above a mark says nothing of it.
    """
    asked = [("XPENDING", _keys(bus, ref).stream, ref.group) for ref in marks]
    safe = {}
    for (ref, mark), reply in zip(marks.items(), bus.client.pipe(asked) if asked else [], strict=True):
        if commands.is_nogroup(reply) or commands.is_of_one_partition(reply):
            continue  # nothing is known of a group that is gone
        count, oldest = check(reply)[:2]
        safe[ref] = min(mark, counting.before(commands.text(oldest)), key=id_pair) if count else mark
    return safe


def _position(key: str, raw: bytes | None) -> str | None:
    position = None if raw is None else known_id(raw)
    if raw is not None and position is None:
        tell(Unreadable(key, "", shown(raw), "is no id"))
    return position


def advance(bus: Bus) -> int:
    """Move groups forward to their copied marks, if there is a database.

    Returns how many messages they do not get again. Raises BusUnavailable, or the database's errors.
    """
    from bus.models import MarkCopy  # as in copy()

    if not is_configured(router.db_for_read(MarkCopy)):
        return 0
    copies = {
        MarkRef(row.topic, row.partition, row.group, row.born): (row.safe, row.era)
        for row in MarkCopy.objects.filter(prefix=bus.settings.prefix)
        if known_id(row.safe)
    }
    refs = [ref for ref in _refs(bus, bus.registry.groups()) if ref in copies]
    behind = [
        ref
        for ref, mark in zip(refs, _marks(bus, refs), strict=True)
        if mark is None or id_pair(mark) < id_pair(copies[ref][0])
    ]
    orderings = {(group.topic, group.name): group.ordering for group in bus.registry.groups()}
    leases: dict[tuple[str, str], list[str]] = {}
    settled = 0
    for ref in behind:
        named = ref.topic, ref.group
        if named not in leases:
            leases[named] = commands.scan(bus.client, bus.keys.leases(*named))
        own = _keys(bus, ref).lease(ref.group, "")
        here = [lease for lease in leases[named] if lease.startswith(own)]
        try:
            settled += advance_one(bus, ref, *copies[ref], orderings.get(named, "key"), here)
        except (ForeignData, ServerError) as error:
            _complain(ref, error)
    return settled


def advance_one(bus: Bus, ref: MarkRef, mark: str, era: str, ordering: Ordering, leases: list[str]) -> int:
    """Move a group forward to a mark in one partition; return how many messages it does not get again.

    It does nothing where the group is not behind, or in another era than the mark: there the ids stand for
    other messages. `leases`: the keys of the leases of its lanes there. It goes in portions, and the group
    moves with the last. Raises BusUnavailable, or BusError where the stream is made anew all the time.
    """
    keys, group = _keys(bus, ref), ref.group
    waiting = [keys.retry(group), keys.held(group), keys.state(group)]
    own = [keys.stream, keys.mark(group), *waiting, *leases]
    for _ in range(_ATTEMPTS):
        facts = _GroupFacts.ask(bus, keys, group)
        if facts is None or facts.era != era:
            return 0
        if id_pair(facts.position) >= min(id_pair(mark), id_pair(facts.last)):
            return 0
        target = min(mark, facts.last, key=id_pair)
        offset = facts.added - counting.count(bus.client, keys.stream, target, facts.basis or "+")
        settled = counting.count(bus.client, keys.stream, facts.position, target)
        at = "-"
        while at and at != "count":
            args = [group, target, str(offset), facts.basis, ordering, at, str(PENDING_A_SCRIPT), era]
            some, raw = commands.run(bus.client, "advance", own, args)
            settled, at = settled + some, commands.text(raw)
        if not at:
            return settled
    raise BusError(f"Group {group!r} of {keys.stream} cannot be moved to its mark: the stream is made anew.")


@dataclass(frozen=True, slots=True)
class _GroupFacts:
    """What the server says of a group in a partition, and of the stream."""

    position: str
    """The last id that the group was given."""
    last: str
    """The greatest id that the stream gave."""
    basis: str
    """The last message that is there; "" if there is none."""
    added: int
    """How many messages the stream ever got."""
    era: str

    @classmethod
    def ask(cls, bus: Bus, keys: PartitionKeys, group: str) -> _GroupFacts | None:
        """Ask the server; return None if there is no such group, or its era cannot be read."""
        stream, state = keys.stream, keys.state(group)
        asked = [("XINFO", "STREAM", stream), ("XINFO", "GROUPS", stream), ("HGET", state, "era")]
        raw, groups, raw_era = bus.client.pipe(asked)
        if commands.is_nogroup(raw):
            return None
        info = commands.fields_of(check(raw))
        rows = map(commands.fields_of, check(groups))
        own = next((row for row in rows if commands.text(row["name"]) == group), None)
        era = read_era(state, check(raw_era))
        if own is None or isinstance(era, Unreadable):
            return None
        position, last = commands.text(own["last-delivered-id"]), commands.text(info["last-generated-id"])
        basis = commands.text(info["last-entry"][0]) if info["last-entry"] else ""
        return cls(position, last, basis, info["entries-added"], era)


def note_unordered(bus: Bus, groups: list[GroupSpec]) -> None:
    """Write the marks of unordered groups, which no lane can know, into Redis. Raises BusUnavailable."""
    left = dict.fromkeys(_refs(bus, groups), "-")
    while left:
        calls: list[tuple[list[str], list[str]]] = []
        for ref, at in left.items():
            keys = _keys(bus, ref)
            own = [keys.stream, keys.mark(ref.group), keys.retry(ref.group)]
            calls.append((own, [ref.group, at, str(PENDING_A_SCRIPT)]))
        replies = dict(zip(left, commands.run_many(bus.client, "mark", calls), strict=True))
        for ref, reply in list(replies.items()):
            if commands.is_of_one_partition(reply):
                _complain(ref, reply)
                del replies[ref]
        left = {
            ref: commands.text(reply[1])
            for ref, reply in replies.items()
            if check(reply) is not None and reply[1]
        }


def _complain(ref: MarkRef, error: object) -> None:
    where = f"{ref.topic}/{ref.partition} for {ref.group}"
    _complaints.say(ref, "The mark of %s is passed over: %s. See `bus doctor`.", where, error)


def _refs(bus: Bus, groups: list[GroupSpec]) -> Iterator[MarkRef]:
    specs = bus.registry.specs()
    for group in groups:
        if group.topic in specs:
            for number in range(specs[group.topic].partitions):
                yield MarkRef(group.topic, number, group.name, group.born)


def _keys(bus: Bus, ref: MarkRef) -> PartitionKeys:
    return bus.keys.partition(ref.topic, ref.partition)
