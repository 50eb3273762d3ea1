"""The state of a group in one partition: a hash with records of failing messages, suspects, era and counters.

    <id>             what is recorded of a message that failed, or waits behind one that did (Failure)
    suspect:<lane>   left-overs up to this id may have killed a worker
    era              which messages the ids stand for (see bus.transactions.inbox)
    ordering         the one in effect, where it was pinned (see bus.topics.reordering)
    dead, dead_dropped, trimmed      counters, kept by scripts

Each field is read by itself. One that cannot be read is logged, and counts as not there.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from bus.moments import MAX_EXACT
from bus.safety.unreadable import Unreadable, escaped, shown, tell
from bus.values import id_pair, known_id

#: Longest error text kept with a message; Redis holds one for each failing message.
MAX_ERROR = 4000
#: Longest key hash, with room for those of newer versions.
_MAX_HASH = 64
#: More attempts than this nobody allows.
_MAX_ATTEMPTS = 10**9
#: Longest era: of the column of bus.models.InboxRow.
_MAX_ERA = 120

_OURS = frozenset("kaetn")


@dataclass(slots=True)
class Failure:
    """The record of a message that has failed, or waits behind one that has."""

    hash: str
    attempts: int = 0
    error: str = ""
    first: int = 0
    """When it failed first, ms by the server's clock."""
    noted: bool = False
    """The last attempt was counted before it ran."""
    rest: Mapping[str, Any] = field(default_factory=dict)
    """Fields that a newer version has added. They are kept and ignored."""

    @classmethod
    def read(cls, key: str, message_id: str, raw: bytes) -> Failure | Unreadable:
        """Read one field of a state hash."""
        why = "is no JSON object"
        try:
            record = orjson.loads(raw)
        except orjson.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            why = "is no record of a failure"
            values: list[Any] = [record.get("k"), record.get("a"), *map(record.get, "etn", ("", 0, False))]
            failure = cls(*values)
            failure.rest = {name: value for name, value in record.items() if name not in _OURS}
            if failure._is_sound():
                failure.error = failure.error[:MAX_ERROR]
                return failure
        return Unreadable(key, message_id, shown(raw), why)

    @classmethod
    def load(cls, raw: bytes | None, key: str = "", message_id: str = "") -> Failure:
        """Read a field; where there is none, or an unreadable one, the message has never failed.

        `key`, `message_id`: where the field stands, for the log.
        """
        failure = cls.read(key, message_id, raw) if raw else cls("")
        if isinstance(failure, Unreadable):
            tell(failure)
            return cls("")
        return failure

    def dump(self) -> str:
        record = {"k": self.hash, "a": self.attempts, "e": self.error, "t": self.first, "n": self.noted}
        return orjson.dumps({**self.rest, **record}).decode()

    def _is_sound(self) -> bool:
        return (
            isinstance(self.hash, str)
            and len(self.hash) <= _MAX_HASH
            and type(self.attempts) is int
            and 0 <= self.attempts <= _MAX_ATTEMPTS
            and isinstance(self.error, str)
            and type(self.first) is int
            and 0 <= self.first <= MAX_EXACT
            and isinstance(self.noted, bool)
        )


@dataclass(slots=True)
class GroupState:
    """The fields of a state hash that one lane needs."""

    failures: dict[str, Failure] = field(default_factory=dict)
    suspect: tuple[int, int] | None = None
    era: bytes | None = None
    ordering: bytes | None = None
    unreadable: list[Unreadable] = field(default_factory=list)


def read(key: str, lane: str, flat: Sequence[bytes]) -> GroupState:
    """Read the reply to HGETALL of a state hash, for a lane. Unknown fields are ignored."""
    state = GroupState()
    for name, raw in zip(flat[::2], flat[1::2], strict=True):
        if name[:1].isdigit():
            message_id = known_id(name)
            if message_id is None:
                state.unreadable.append(_unreadable(key, name, raw, "has a name that is no id"))
                continue
            failure = Failure.read(key, message_id, raw)
            if isinstance(failure, Unreadable):
                state.unreadable.append(failure)
            else:
                state.failures[message_id] = failure
        elif name == b"suspect:" + lane.encode():
            if known_id(raw) is None:
                state.unreadable.append(_unreadable(key, name, raw, "is no id"))
            else:
                state.suspect = id_pair(raw)
        elif name == b"era":
            state.era = raw
        elif name == b"ordering":
            state.ordering = raw
    return state


def new_era(prefix: str) -> str:
    """Return the name of an era that there never was. `prefix`: of the bus; databases may serve several."""
    return f"{prefix}:{secrets.token_hex(8)}"


def read_era(key: str, raw: bytes | None) -> str | Unreadable:
    """Read the field `era`; "" for a group that is older than eras."""
    if not raw:
        return ""
    text = raw.decode("ascii", "replace")
    if len(raw) > _MAX_ERA or not text.isascii() or not text.isprintable():
        return _unreadable(key, b"era", raw, "is no token of an era")
    return text


def read_counter(key: str, name: str, raw: bytes | None) -> int | Unreadable:
    """Read a counter; 0 if it is missing."""
    if raw is None:
        return 0
    if not (raw.isdigit() and len(raw) <= len(str(2**63))):
        return _unreadable(key, name.encode(), raw, "is no count")
    return int(raw)


def _unreadable(key: str, name: bytes, raw: bytes, why: str) -> Unreadable:
    return Unreadable(key, escaped(name), shown(raw), why)
