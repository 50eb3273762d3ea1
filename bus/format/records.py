"""The records of topics and groups in Redis: read as values or Unreadable, and written.

An unknown field is a newer version's. It is ignored, and kept when the record is written again. An unreadable
record stays as it is until code or database declare the same anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import orjson

from bus.errors import ConfigurationError
from bus.safety.unreadable import Unreadable, escaped, shown
from bus.streams import commands
from bus.streams.connect import check
from bus.values import ORDERINGS, Ordering, TopicSpec, is_name, known_id

#: Fields of the records as this version writes them.
_TOPIC = frozenset(("partitions", "retention"))
_GROUP = frozenset(("ordering", "start", "paused", "born"))
Spec = TypeVar("Spec", TopicSpec, "GroupSpec")

#: Characters of `born` at most: copies of marks are kept under it in a column of this size.
_BORN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """The declaration of a consumer group on one topic."""

    topic: str
    name: str
    ordering: Ordering = "key"
    start: str = "earliest"
    """The place where the group began: earliest, latest or an id."""
    paused: bool = False
    born: str = ""
    """A token of the group's first declaration: a group that is deleted and declared again has another."""
    rest: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Fields that a newer version has added to its record. They are kept and ignored."""


@dataclass(frozen=True, slots=True)
class Look:
    """The topics and groups in Redis, and the records that cannot be read."""

    specs: dict[str, TopicSpec]
    """By name."""
    groups: list[GroupSpec]
    unreadable: list[Unreadable]


def layout_of(key: str, reply: Any) -> int | Unreadable | None:
    """Return the layout of keys in the reply to HGET; None if none is written yet."""
    if commands.is_wrongtype(reply):
        return Unreadable(key, "", "", "is no hash")
    raw = check(reply)
    if raw is None:
        return None
    if not (raw.isdigit() and len(raw) < 10):
        return Unreadable(key, "layout", shown(raw), "is no number")
    return int(raw)


def sorted_out(
    key: str, reply: Any, load: Callable[[str, bytes, bytes], Spec | Unreadable]
) -> tuple[list[Spec], list[Unreadable]]:
    """Return the specs in the reply to HGETALL, and the records that cannot be read."""
    if commands.is_wrongtype(reply):
        return [], [Unreadable(key, "", "", "is no hash")]
    flat = check(reply)
    specs: list[Spec] = []
    strange: list[Unreadable] = []
    for name, raw in sorted(zip(flat[::2], flat[1::2], strict=True)):
        record = load(key, name, raw)
        if isinstance(record, Unreadable):
            strange.append(record)
        else:
            specs.append(record)
    return specs, strange


def load_topic(key: str, name: bytes, raw: bytes) -> TopicSpec | Unreadable:
    """Read one field of the hash of topics."""
    if not is_name(named := name.decode("ascii", "replace")):
        return _unreadable(key, name, raw, "has a name that no topic can have")
    record = _object(raw)
    if record is None:
        return _unreadable(key, name, raw, "is no JSON object")
    rest = _rest(record, _TOPIC)
    retention = record.get("retention")
    if retention is not None and not (_is_number(retention) and retention > 0):
        return _unreadable(key, name, raw, "has a retention that is no number of seconds", rest)
    try:
        kept = timedelta(seconds=retention) if retention is not None else None
        return TopicSpec(name=named, partitions=record.get("partitions", 0), retention=kept, rest=rest)
    except OverflowError:
        return _unreadable(key, name, raw, "has a retention beyond what time there is", rest)
    except ConfigurationError:
        return _unreadable(key, name, raw, "has no number of partitions that a topic can have", rest)


def dump_topic(spec: TopicSpec, before: TopicSpec | None = None) -> bytes:
    """Return the record of a topic, with the unknown fields of the spec `before` it."""
    retention = spec.retention.total_seconds() if spec.retention else None
    rest = before.rest if before is not None else spec.rest
    return orjson.dumps({**rest, "partitions": spec.partitions, "retention": retention})


def load_group(key: str, name: bytes, raw: bytes) -> GroupSpec | Unreadable:
    """Read one field of the hash of groups."""
    topic, _, group = name.decode("ascii", "replace").partition("/")
    if not (is_name(topic) and is_name(group)):
        return _unreadable(key, name, raw, "has a name that no group of a topic can have")
    record = _object(raw)
    if record is None:
        return _unreadable(key, name, raw, "is no JSON object")
    rest = _rest(record, _GROUP)
    ordering, start = record.get("ordering"), record.get("start")
    if ordering not in ORDERINGS:
        # A word that is not known may be one of a newer version.
        return _unreadable(
            key, name, raw, "has no ordering that is known here", rest or isinstance(ordering, str)
        )
    if not isinstance(start, str) or not (start in ("earliest", "latest") or known_id(start)):
        return _unreadable(key, name, raw, "does not say where the group begins", rest)
    paused, born = record.get("paused", False), record.get("born", "")
    if not isinstance(paused, bool) or not _is_born(born):
        return _unreadable(key, name, raw, "does not say if the group is paused, or which group it is", rest)
    return GroupSpec(
        topic=topic, name=group, ordering=ordering, start=start, paused=paused, born=born, rest=rest
    )


def dump_group(spec: GroupSpec) -> bytes:
    """Return the record of a group, with its unknown fields."""
    record = {"ordering": spec.ordering, "start": spec.start, "paused": spec.paused, "born": spec.born}
    return orjson.dumps({**spec.rest, **record})


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _rest(record: dict[str, Any], ours: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ours}


def _is_born(born: object) -> bool:
    return born == "" or (is_name(born) and isinstance(born, str) and len(born) <= _BORN)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unreadable(key: str, name: bytes, raw: bytes, why: str, newer: object = False) -> Unreadable:
    return Unreadable(key, escaped(name), shown(raw), why, bool(newer))
