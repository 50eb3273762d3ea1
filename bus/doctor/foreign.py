"""Finds what stands under the keys of the bus and is not what Jitney writes there.

Of long sets and hashes only a part is read: what is found is there, what is not found may be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from bus.client import Bus
from bus.doctor.finding import Finding, Level, some
from bus.format import state as states
from bus.format.keys import PartitionKeys, unpad_id
from bus.format.lane_id import ORDERED_LANE, LaneId
from bus.moments import MAX_EXACT
from bus.observe import Survey
from bus.observe.facts import ask
from bus.safety.unreadable import Unreadable, escaped, shown
from bus.streams.commands import fields_of, is_nogroup, is_wrongtype, text
from bus.streams.connect import check
from bus.streams.wire import Command
from bus.upkeep.retention import ahead_words
from bus.values import id_pair, known_id

#: Members or fields looked at in one key: a sample.
_LOOKED_AT = 100
#: Ids may be so far ahead of the clock: clocks are set by small steps all the time. Milliseconds.
_TOLERANCE = 60_000
_COUNTERS = ("dead", "dead_dropped", "trimmed", "lost", "lost_maybe", "cut")
_LAST_ID = f"{2**64 - 1}-{2**64 - 1}"

_KINDS: dict[str, tuple[Level, str, str]] = {
    "newer": (
        "error",
        "Records that may be of a newer Jitney; what they are of is not served here",
        "Upgrade Jitney here. If nothing newer runs, remove them with HDEL and run `bus topic sync`.",
    ),
    "record": (
        "error",
        "Records of topics and groups that cannot be read; what they are of is not shown",
        "Run `bus topic sync`, and start the workers again: what code and database declare is written anew. "
        "Remove with HDEL what nobody declares.",
    ),
    "type": (
        "error",
        "Keys that hold something else than Jitney writes there; what needs them waits",
        "Look at them, then rename or delete them: all goes on by itself.",
    ),
    "unreadable": (
        "warning",
        "Fields, members and values that cannot be read; they are passed over",
        "Look at them, then remove them: HDEL of a field, ZREM of a member, DEL of a mark.",
    ),
    "full": (
        "error",
        "Streams whose last id is the greatest that there can be, so nothing can be added any more",
        "Somebody has given that id by hand. When all groups have settled what is there, delete the key: it "
        "is made again with its groups when it is needed.",
    ),
    "ahead": (
        "warning",
        "Partitions whose ids are ahead of the server's clock, so times are wrong",
        "The clock was ahead, or somebody has given ids by hand. Messages keep their order. Retention goes "
        "by when messages were seen, until the clock has caught up.",
    ),
}


def examine(bus: Bus, survey: Survey) -> Iterator[Finding]:
    """Yield one finding for each kind of trouble, or one that says that there is none."""
    search = _Search(bus, survey)
    search.run()
    yield from search.findings()
    if not search.found_any:
        yield Finding("ok", "foreign", "Nothing was found in the keys of the bus that cannot be read.")


class _Search:
    """Looks through all keys of the bus, and notes what is wrong there by its kind."""

    def __init__(self, bus: Bus, survey: Survey) -> None:
        self._bus = bus
        self._survey = survey
        self._troubles: defaultdict[str, list[str]] = defaultdict(list)
        self._now = int(survey.taken.timestamp() * 1000)

    @property
    def found_any(self) -> bool:
        return bool(self._troubles)

    def findings(self) -> Iterator[Finding]:
        for kind, (level, what, hint) in _KINDS.items():
            names = self._troubles.get(kind, [])
            if names:
                yield Finding(level, "foreign", f"{what}: {some(names, '; ')}.", hint)

    # ------------------------------------------------------------------ looking

    def run(self) -> None:
        bus, keys, survey = self._bus, self._bus.keys, self._survey
        for record in survey.unreadable:
            self._note("type" if not record.field else "newer" if record.newer else "record", record)
        asked: list[Command] = [("HLEN", keys.meta), ("XINFO", "STREAM", keys.control)]
        asked += [("HLEN", keys.workers), ("ZCARD", keys.due), ("HLEN", keys.refused)]
        meta, control, workers, due, refused = bus.client.pipe(asked)
        self._type(keys.meta, "hash", meta)
        self._type(keys.workers, "hash", workers)
        self._type(keys.due, "zset", due)
        self._type(keys.refused, "hash", refused)
        self._stream(keys.control, control)
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for group in survey.group_specs:
            groups[group.topic].append(group.name)
        partitions = [(spec.name, n) for spec in survey.topic_specs for n in range(spec.partitions)]
        commands = [command for topic, n in partitions for command in self._commands(topic, n, groups[topic])]
        replies = ask(bus.client, commands)
        for topic, number in partitions:
            partition = keys.partition(topic, number)
            self._stream(partition.stream, next(replies), messages=True)
            self._type(partition.ahead, "hash", next(replies))
            for name in groups[topic]:
                lease = survey.leases[LaneId(topic, number, name)]
                self._group(partition, name, [next(replies) for _ in range(7)], lease)

    def _commands(self, topic: str, number: int, groups: list[str]) -> Iterator[Command]:
        keys = self._bus.keys.partition(topic, number)
        yield ("XINFO", "STREAM", keys.stream)
        yield ("HLEN", keys.ahead)
        for group in groups:
            yield ("HMGET", keys.state(group), "era", "suspect:0", *_COUNTERS)
            yield ("HSCAN", keys.state(group), 0, "COUNT", _LOOKED_AT)
            yield ("ZRANGE", keys.retry(group), 0, _LOOKED_AT - 1)
            yield ("ZRANGEBYSCORE", keys.retry(group), MAX_EXACT, "+inf", "LIMIT", 0, _LOOKED_AT)
            yield ("ZRANGE", keys.held(group), 0, _LOOKED_AT - 1)
            yield ("GET", keys.mark(group))
            yield ("XINFO", "STREAM", keys.dead(group))

    # ------------------------------------------------------------------ judging

    def _group(self, keys: PartitionKeys, group: str, replies: list[Any], lease: Any) -> None:
        fields, scanned, retries, never, held, mark, dead = replies
        state, retry = keys.state(group), keys.retry(group)
        if not self._type(state, "hash", fields):
            self._state(state, check(fields), check(scanned)[1])
        if not self._type(retry, "zset", retries):
            for member in dict.fromkeys([*check(retries), *check(never)]):
                if known_id(member) is None:
                    self._strange(retry, member, "is no id")
        if not self._type(keys.held(group), "zset", held):
            for member in check(held):
                if not _is_held(member):
                    self._strange(keys.held(group), member, "is no hash and id")
        if (
            not self._type(keys.mark(group), "string", mark)
            and (raw := check(mark))
            and known_id(raw) is None
        ):
            self._note("unreadable", Unreadable(keys.mark(group), "", shown(raw), "is no id"))
        self._stream(keys.dead(group), dead)
        self._type(keys.lease(group, ORDERED_LANE), "string", lease)

    def _state(self, key: str, fields: list[bytes | None], scanned: list[bytes]) -> None:
        values: list[object] = [states.read_era(key, fields[0])]
        values += [
            states.read_counter(key, name, raw) for name, raw in zip(_COUNTERS, fields[2:], strict=True)
        ]
        suspect = fields[1]
        flat = [*scanned, *([b"suspect:0", suspect] if suspect is not None else [])]
        values += states.read(key, ORDERED_LANE, flat).unreadable
        for record in dict.fromkeys(value for value in values if isinstance(value, Unreadable)):
            self._note("unreadable", record)

    def _stream(self, key: str, reply: Any, *, messages: bool = False) -> None:
        if is_wrongtype(reply):
            self._type(key, "stream", reply)
            return
        if is_nogroup(reply):
            return
        last = text(fields_of(check(reply))["last-generated-id"])
        if last == _LAST_ID:
            self._troubles["full"].append(shown(key))
        elif messages and (ahead := id_pair(last)[0] - self._now) > _TOLERANCE:
            self._troubles["ahead"].append(f"{shown(key)} by {ahead_words(ahead)}")

    def _type(self, key: str, wanted: str, reply: Any) -> bool:
        """Return whether the reply says that the key is of another type; if so, note it."""
        if not is_wrongtype(reply):
            return False
        self._note("type", Unreadable(key, "", "something else", f"stands where a {wanted} should be"))
        return True

    def _strange(self, key: str, member: bytes, why: str) -> None:
        name = escaped(member)
        self._note("unreadable", Unreadable(key, name, "a member that", why))

    def _note(self, kind: str, record: Unreadable) -> None:
        self._troubles[kind].append(str(record))


def _is_held(member: bytes) -> bool:
    padded = text(member).rpartition(":")[2]
    try:
        return len(padded) == 41 and known_id(unpad_id(padded)) is not None
    except ValueError:
        return False
