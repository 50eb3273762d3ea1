"""The table of workers in Redis: what a worker says of itself with each beat, read in one place.

Every byte of it is untrusted, and a newer Jitney may have written it: fields that are not known here are
passed over, what is not a record is `Unreadable`, and either says nothing about the other records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from bus.format.lane_id import LaneId
from bus.safety.unreadable import Unreadable, escaped, shown

#: A longer record is not read. Bytes. 20,000 declined lanes with long names take a tenth of it.
MAX_BYTES = 16 << 20
#: The last millisecond that Python's datetime knows.
_LAST_MS = 253_402_300_799_999
#: Bytes of an incarnation that is believed. Ours have at most 40 of the host's name and some 30 more.
_MAX_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """One worker, as of its last beat."""

    incarnation: str
    beat: int
    """Goes up with each beat."""
    host: str = ""
    pid: int = 0
    boot: str = ""
    pidns: str = ""
    start: int | None = None
    started: int = 0
    """ms since 1970."""
    groups: tuple[str, ...] | None = None
    """Names of the groups that it serves; None: all."""
    serves: frozenset[str] | None = None
    """What it serves, as `topic/group`; None in a record of a version that said only `groups`."""
    processes: int = 0
    leaving: bool = False
    """It takes no lanes any more."""
    declines: frozenset[LaneId] | None = None
    """The lanes for which it has no slot; None while it is not busy."""
    unheld: tuple[LaneId, ...] = ()
    """Lanes that nobody has held for long though somebody serves them, as this worker saw it."""

    @property
    def proof(self) -> dict[str, object]:
        """What tells its process from any other."""
        return {"pid": self.pid, "start": self.start, "boot": self.boot, "pidns": self.pidns}

    def serves_group(self, topic: str, group: str) -> bool:
        """Whether it has a handler for this group of this topic, as far as the record says."""
        if self.serves is not None:
            return f"{topic}/{group}" in self.serves
        return self.groups is None or group in self.groups


@dataclass(frozen=True, slots=True)
class WorkerTable:
    """The whole table, as it was read."""

    records: dict[str, WorkerRecord] = field(default_factory=dict)
    """Incarnation → its record."""
    unreadable: tuple[Unreadable, ...] = ()
    counters: dict[str, int] = field(default_factory=dict)
    """Incarnation → a number that another beat changes. Of records that cannot be read too, since a version
    that writes them otherwise may be alive."""


def read_table(key: str, reply: Sequence[bytes]) -> WorkerTable:
    """The table from the reply to HGETALL; `key`: where it was read."""
    table, unreadable = WorkerTable(), []
    for name, raw in zip(reply[::2], reply[1::2], strict=True):
        found = _read(key, bytes(name), bytes(raw))
        if isinstance(found, Unreadable):
            unreadable.append(found)
            # Under what is no name of a worker nobody can hold a lease; it is shown in logs all the same.
            table.counters[name.decode() if _is_incarnation(name) else shown(name)] = hash(raw)
        else:
            table.records[found.incarnation] = found
            table.counters[found.incarnation] = found.beat
    return WorkerTable(table.records, tuple(unreadable), table.counters)


def _read(key: str, name: bytes, raw: bytes) -> WorkerRecord | Unreadable:
    def unreadable(why: str) -> Unreadable:
        return Unreadable(key, escaped(name), shown(raw), why)

    if not _is_incarnation(name):
        return unreadable("stands under what is no name of a worker")
    if len(raw) > MAX_BYTES:
        return unreadable(f"has {len(raw):,} bytes, which no record has")
    try:
        known = orjson.loads(raw)
    except ValueError:
        return unreadable("is not JSON")
    if not isinstance(known, dict):
        return unreadable("is not a JSON object")
    if "beat" not in known:
        return unreadable("has no `beat`")
    wanted = {name: known[name] for name in _FIELDS if name in known}
    wrong = [name for name, value in wanted.items() if not _FIELDS[name](value)]
    if wrong:
        return unreadable(f"has a `{wrong[0]}` that is none")
    return _record(name.decode(), wanted)


def _record(incarnation: str, known: Mapping[str, Any]) -> WorkerRecord:
    declines = known.get("declines")
    groups, serves = known.get("groups"), known.get("serves")
    return WorkerRecord(
        incarnation=incarnation,
        beat=known["beat"],
        host=known.get("host", ""),
        pid=known.get("pid", 0),
        boot=known.get("boot") or "",
        pidns=known.get("pidns") or "",
        start=known.get("start"),
        started=known.get("started", 0),
        groups=None if groups is None else tuple(groups),
        serves=None if serves is None else frozenset(serves),
        processes=known.get("processes", 0),
        leaving=known.get("leaving", False),
        declines=None if declines is None else frozenset(map(load_lane, declines)),
        unheld=tuple(map(load_lane, known.get("unheld", ()))),
    )


def where(lane: LaneId) -> str:
    """A home as people read it."""
    return f"{lane.topic}/{lane.partition} for {lane.group}"


def dump_lane(lane: LaneId) -> str:
    """A home as it stands in a record. No name of a topic or group has a slash in it."""
    return f"{lane.topic}/{lane.partition}/{lane.group}"


def load_lane(text: str) -> LaneId:
    """The inverse of `dump_lane`. Raises ValueError for anything else."""
    topic, partition, group = text.split("/")
    return LaneId(topic, int(partition), group)


# ---------------------------------------------------------------------- what each field may be


def _is_incarnation(name: bytes) -> bool:
    return 0 < len(name) <= _MAX_NAME and all(0x21 <= byte <= 0x7E and byte not in b":/" for byte in name)


def _is_number(value: object, most: int = (1 << 63) - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_lanes(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and _is_lane(each) for each in value)


def _is_lane(text: str) -> bool:
    parts = text.split("/")
    return len(parts) == 3 and parts[1].isascii() and parts[1].isdigit() and len(parts[1]) <= 9


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "beat": _is_number,
    "host": lambda value: isinstance(value, str),
    "pid": lambda value: _is_number(value, (1 << 31) - 1),
    "boot": _is_text,
    "pidns": _is_text,
    "start": lambda value: value is None or _is_number(value),
    "started": lambda value: _is_number(value, _LAST_MS),
    "groups": lambda value: value is None or _is_texts(value),
    "serves": lambda value: value is None or _is_texts(value),
    "processes": _is_number,
    "leaving": lambda value: isinstance(value, bool),
    "declines": lambda value: value is None or _is_lanes(value),
    "unheld": _is_lanes,
}
