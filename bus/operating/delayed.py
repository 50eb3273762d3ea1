"""Messages that wait until they are due: listed, cancelled before. `bus.upkeep.due` moves them.

Publishing with `delay=` or `at=` keeps a message beside the stream of its partition (`delay.lua`). A waiting
message is addressed by its `DelayedRef`, written `3/d17`: the partition, and the id in the receipt of its
publish. `bus.operating.operate` adds the audit to `cancel`.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from bus.errors import ConfigurationError
from bus.format import codec, netstrings
from bus.safety.unreadable import escaped
from bus.safety.verbs import verb
from bus.streams.commands import run
from bus.streams.connect import check
from bus.values import Message

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.format.keys import PartitionKeys

#: Messages that one script cancels: a few milliseconds of the server's time.
CHUNK = 100
#: The code of cancel.lua for a message that it did not come to.
_LATER = -1
#: Messages in one read of a list: each may be as large as MAX_MESSAGE_BYTES.
PAGE = 50
#: Messages whose numbers alone are read, or that are cancelled, at a time.
BATCH = 1000

_MEMBER = re.compile(rb"\d{16}")
_REF = re.compile(r"(\d{1,4})/d(\d{1,15})", re.ASCII)
#: What the body of a message is called where it cannot be read.
_UNREADABLE = b"delayed"
#: The last moment that a datetime can be, with room for a time zone.
_LAST_MS = datetime(9999, 12, 30, tzinfo=UTC).timestamp() * 1000

#: Due times from here on never come (in milliseconds); so `move.lua` sets aside what cannot be moved.
NEVER = 2.0**53


#: Partitions of a topic, as of `partitions`.
Partitions: TypeAlias = "list[tuple[int, PartitionKeys]]"


@dataclass(frozen=True, slots=True, order=True)
class DelayedRef:
    """The address of a waiting message: its partition, and its number there in the order of publishing."""

    partition: int
    number: int

    @classmethod
    def parse(cls, written: str) -> DelayedRef:
        """`"3/d17"`. Raises ConfigurationError."""
        found = _REF.fullmatch(written)
        if found is None:
            raise ConfigurationError(
                f"{written!r} is no delayed message: write its partition and its id, such as '3/d17'."
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.partition}/d{self.number}"

    @classmethod
    def of_member(cls, partition: int, member: bytes) -> DelayedRef | None:
        """Read a member; None if somebody else wrote it. The inverse of `member`."""
        return cls(partition, int(member)) if _MEMBER.fullmatch(member) else None

    @property
    def member(self) -> str:
        """Return the member as it stands in the zset and the hash."""
        return f"{self.number:016d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayedMessage:
    """One message that waits."""

    ref: DelayedRef
    due: datetime
    """When it is moved, by the server's clock. In the past: it waits for a worker. The end of the calendar:
    never, since its body cannot be read.
    """
    message_id: str | None
    message: Message
    """Its id is `d17`. It has no timestamp: it is not stored in its topic yet."""


@dataclass(slots=True)
class Cancelled:
    """How many of the messages that were to be cancelled were, and how many were not there any more."""

    cancelled: int = 0
    gone: int = 0

    def add(self, removed: Sequence[bool]) -> None:
        self.cancelled += sum(removed)
        self.gone += len(removed) - sum(removed)

    @property
    def total(self) -> int:
        return self.cancelled + self.gone


class _Row(NamedTuple):
    """A row of the zset: when it is due (ms), and its padded number."""

    due: float
    member: bytes


# ---------------------------------------------------------------------- looking


def count(bus: Bus, topic: str, partition: int | None = None, chosen: Partitions | None = None) -> int:
    """Return how many messages wait in a topic, or in one of its partitions. Raises what `find` raises."""
    chosen = partitions(bus, topic, partition) if chosen is None else chosen
    asked = [("ZCARD", keys.delayed) for _, keys in chosen]
    return sum(check(reply) for reply in bus.client.pipe(asked))


def present(bus: Bus, topic: str, refs: Iterable[DelayedRef]) -> int:
    """Return how many of these messages still wait. Raises UnknownTopic and BusUnavailable."""
    known = dict(partitions(bus, topic, None))
    wanted = [ref for ref in dict.fromkeys(refs) if ref.partition in known]
    asked = [("ZSCORE", known[ref.partition].delayed, ref.member) for ref in wanted]
    return sum(check(reply) is not None for reply in bus.client.pipe(asked))


def find(
    bus: Bus, topic: str, partition: int | None = None, chosen: Partitions | None = None
) -> Iterator[DelayedMessage]:
    """The messages that wait, in order of due time over all partitions; read in pages as they are asked for.

    Raises UnknownTopic, ConfigurationError (no such partition), at once, and BusUnavailable.
    """
    chosen = partitions(bus, topic, partition) if chosen is None else chosen
    return _read(bus, topic, heapq.merge(*(_rows(bus, number, keys, PAGE) for number, keys in chosen)))


def refs(bus: Bus, topic: str, partition: int | None = None) -> Iterator[DelayedRef]:
    """Which messages wait now, partition by partition in due order, without reading them.

    What is published from now on is left out, so this ends. Raises as `find`.
    """
    chosen = partitions(bus, topic, partition)
    lasts = bus.client.pipe([("HGET", keys.delayed_body, "last") for _, keys in chosen])
    return (
        ref
        for (number, keys), last in zip(chosen, lasts, strict=True)
        for _due, ref in _rows(bus, number, keys, BATCH)
        if ref.number <= _last_number(check(last))
    )


def _last_number(raw: bytes | None) -> float:
    """Return the last number given; infinite if that cannot be read: then no more can be given."""
    return int(raw) if raw is not None and raw.isdigit() else math.inf


def _read(bus: Bus, topic: str, rows: Iterator[tuple[float, DelayedRef]]) -> Iterator[DelayedMessage]:
    """The messages of rows; their bodies PAGE at a time, from however many partitions."""
    while page := list(islice(rows, PAGE)):
        asked = [
            ("HGET", bus.keys.partition(topic, ref.partition).delayed_body, ref.member) for _, ref in page
        ]
        for (due, ref), reply in zip(page, bus.client.pipe(asked), strict=True):
            body = check(reply)
            if body is not None:  # else it was moved or cancelled meanwhile
                yield _message(topic, ref, due, body)


def _rows(bus: Bus, partition: int, keys: PartitionKeys, size: int) -> Iterator[tuple[float, DelayedRef]]:
    """When what is due in one partition, in order; `size` in one read.

    Rows that come or go meanwhile make no other be left out or come twice: each read begins with the
    last row of the one before, and goes back where that is not met again.
    """
    last, offset = _Row(float("-inf"), b""), 0
    while True:
        lowest = last.due
        limits = ("LIMIT", offset, size + 1)
        reply = bus.client.call("ZRANGEBYSCORE", keys.delayed, repr(lowest), "+inf", "WITHSCORES", *limits)
        rows = [_Row(float(score), member) for member, score in zip(reply[::2], reply[1::2], strict=True)]
        if offset and (not rows or rows[0] > last):
            offset = max(0, offset - size)
            continue
        for row in rows:
            if row > last and (ref := DelayedRef.of_member(partition, row.member)):
                yield row.due, ref
        if len(rows) <= size:
            return
        # Where to find the last of these rows again: among those of its due time.
        same = sum(row.due == rows[-1].due for row in rows)
        offset = offset + size if rows[-1].due == lowest else same - 1
        last = max(last, rows[-1])


def _message(topic: str, ref: DelayedRef, due: float, body: bytes) -> DelayedMessage:
    parts = split(body)
    message_id, fields = (b"", [_UNREADABLE, body]) if parts is None else (parts[0], parts[1:])
    return DelayedMessage(
        ref=ref,
        due=moment(due),
        message_id=escaped(message_id) or None,
        message=Message(topic, ref.partition, f"d{ref.number}", fields, codec.decode),
    )


def moment(milliseconds: float) -> datetime:
    """Return a due time. One beyond the calendar, of what will never be moved, is the calendar's end."""
    return datetime.fromtimestamp(max(0.0, min(milliseconds, _LAST_MS)) / 1000, UTC)


def split(body: bytes) -> list[bytes] | None:
    """The parts of a body, as `move.lua` reads them: message_id, field, value, …; None if it has none."""
    try:
        parts = netstrings.unpack(body)
    except ValueError:
        return None
    return parts if len(parts) >= 3 and len(parts) % 2 else None


# ---------------------------------------------------------------------- cancelling


def batches(refs: Iterable[DelayedRef]) -> Iterator[list[DelayedRef]]:
    """Refs as they are to be cancelled, at most BATCH at a time."""
    rest = iter(refs)
    while batch := list(islice(rest, BATCH)):
        yield batch


@verb("cancel delayed")
def cancel(bus: Bus, topic: str, refs: Sequence[DelayedRef]) -> list[bool]:
    """Remove messages that wait; for each whether it was there. Works while memory is full.

    Their message_ids are free again. One that is not there was moved or cancelled before. Raises
    UnknownTopic, and BusUnavailable or ReplyLost; then some may have been cancelled.
    """
    refs_of: dict[int, list[DelayedRef]] = {}
    known = dict(partitions(bus, topic, None))
    for ref in dict.fromkeys(refs):
        refs_of.setdefault(ref.partition, []).append(ref)
    cancelled: set[DelayedRef] = set()
    for number, of_partition in refs_of.items():
        left = of_partition if number in known else []
        while left:
            some, left = left[:CHUNK], left[CHUNK:]
            codes = run(bus.client, "cancel", own_keys(known[number]), [ref.member for ref in some])
            cancelled.update(ref for ref, code in zip(some, codes, strict=True) if code == 1)
            left[:0] = [ref for ref, code in zip(some, codes, strict=True) if code == _LATER]
    return [ref in cancelled for ref in refs]


def own_keys(keys: PartitionKeys) -> list[str]:
    """The first keys of `move.lua` and `cancel.lua`."""
    return [keys.stream, keys.delayed, keys.delayed_body]


def partitions(bus: Bus, topic: str, partition: int | None) -> Partitions:
    """Return the partitions that are meant. Raises UnknownTopic, ForeignData or ConfigurationError."""
    spec = bus.registry.stored(topic)
    if partition is not None and not 0 <= partition < spec.partitions:
        raise ConfigurationError(f"Topic {topic!r} has the partitions 0 to {spec.partitions - 1}.")
    numbers = range(spec.partitions) if partition is None else [partition]
    return [(number, bus.keys.partition(topic, number)) for number in numbers]
