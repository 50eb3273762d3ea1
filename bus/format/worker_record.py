"""The table of workers in Redis: the record that each worker writes with each beat.

Every byte of it is untrusted, and a newer Jitney may have written it. Unknown fields are ignored. What is no
record is `Unreadable`, and says nothing of the other records.
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
    """What a worker said of itself with its last beat."""

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
        """What tells its process from any other: number, start, boot of the machine, namespace."""
        return {"pid": self.pid, "start": self.start, "boot": self.boot, "pidns": self.pidns}

    def serves_group(self, topic: str, group: str) -> bool:
        """Return whether it has a handler for this group of this topic, as far as the record says."""
        if self.serves is not None:
            return f"{topic}/{group}" in self.serves
        return self.groups is None or group in self.groups


@dataclass(frozen=True, slots=True)
class WorkerTable:
    """All records of workers."""

    records: dict[str, WorkerRecord] = field(default_factory=dict)
    """Incarnation → its record."""
    unreadable: tuple[Unreadable, ...] = ()
    counters: dict[str, int] = field(default_factory=dict)
    """Incarnation → a number that each beat changes. Unreadable records have one too: the worker may live."""


def read_table(key: str, reply: Sequence[bytes]) -> WorkerTable:
    """Read the table from the reply to HGETALL of `key`."""
    table, unreadable = WorkerTable(), []
    for name, raw in zip(reply[::2], reply[1::2], strict=True):
        record = _read(key, bytes(name), bytes(raw))
        if isinstance(record, Unreadable):
            unreadable.append(record)
            # Under what is no name of a worker nobody can hold a lease; it is shown in logs all the same.
            table.counters[name.decode() if _is_incarnation(name) else shown(name)] = hash(raw)
        else:
            table.records[record.incarnation] = record
            table.counters[record.incarnation] = record.beat
    return WorkerTable(table.records, tuple(unreadable), table.counters)


def _read(key: str, name: bytes, raw: bytes) -> WorkerRecord | Unreadable:
    def unreadable(why: str) -> Unreadable:
        return Unreadable(key, escaped(name), shown(raw), why)

    if not _is_incarnation(name):
        return unreadable("stands under what is no name of a worker")
    if len(raw) > MAX_BYTES:
        return unreadable(f"has {len(raw):,} bytes, which no record has")
    try:
        given = orjson.loads(raw)
    except ValueError:
        return unreadable("is not JSON")
    if not isinstance(given, dict):
        return unreadable("is not a JSON object")
    if "beat" not in given:
        return unreadable("has no `beat`")
    fields = {name: given[name] for name in _FIELDS if name in given}
    wrong = [name for name, value in fields.items() if not _FIELDS[name](value)]
    if wrong:
        return unreadable(f"has a `{wrong[0]}` that is none")
    return _record(name.decode(), fields)


def _record(incarnation: str, fields: Mapping[str, Any]) -> WorkerRecord:
    declines = fields.get("declines")
    groups, serves = fields.get("groups"), fields.get("serves")
    return WorkerRecord(
        incarnation=incarnation,
        beat=fields["beat"],
        host=fields.get("host", ""),
        pid=fields.get("pid", 0),
        boot=fields.get("boot") or "",
        pidns=fields.get("pidns") or "",
        start=fields.get("start"),
        started=fields.get("started", 0),
        groups=None if groups is None else tuple(groups),
        serves=None if serves is None else frozenset(serves),
        processes=fields.get("processes", 0),
        leaving=fields.get("leaving", False),
        declines=None if declines is None else frozenset(map(load_lane, declines)),
        unheld=tuple(map(load_lane, fields.get("unheld", ()))),
    )


def where(lane: LaneId) -> str:
    """Return a home as people read it."""
    return f"{lane.topic}/{lane.partition} for {lane.group}"


def dump_lane(lane: LaneId) -> str:
    """Return a home as records have it. Names of topics and groups have no slash."""
    return f"{lane.topic}/{lane.partition}/{lane.group}"


def load_lane(text: str) -> LaneId:
    """Return the home that `dump_lane` wrote. Raises ValueError for any other text."""
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
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_lanes(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and _is_lane(text) for text in value)


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
