"""Lists and cancels delayed messages. `bus.upkeep.due` moves them when they are due.

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
REFS_A_SCRIPT = 100
#: The code of cancel.lua for a message that it has not reached.
_LATER = -1
#: Messages in one read: each may be as large as MAX_MESSAGE_BYTES.
MESSAGES_A_READ = 50
#: Rows of the zset in one read, where only the numbers of messages are asked for.
REFS_A_READ = 1000
#: Messages that are cancelled at a time, and that share an audit record.
REFS_A_RECORD = 1000

_MEMBER = re.compile(rb"\d{16}")
_REF = re.compile(r"(\d{1,4})/d(\d{1,15})", re.ASCII)
#: The field under which the body of a message is shown where it cannot be read.
_UNREADABLE = b"delayed"
#: The last moment that a datetime can hold, with room for a time zone.
_LAST_MS = datetime(9999, 12, 30, tzinfo=UTC).timestamp() * 1000

#: Due times from here on never come, in ms: by them `move.lua` sets aside what cannot be moved.
NEVER = 2.0**53


#: Partitions of a topic, as `partitions` returns them.
Partitions: TypeAlias = "list[tuple[int, PartitionKeys]]"


@dataclass(frozen=True, slots=True, order=True)
class DelayedRef:
    """The address of a waiting message: its partition, and its number there in the order of publishing."""

    partition: int
    number: int

    @classmethod
    def parse(cls, written: str) -> DelayedRef:
        """Read a text like `"3/d17"`. Raises ConfigurationError."""
        match = _REF.fullmatch(written)
        if match is None:
            raise ConfigurationError(
                f"{written!r} is no delayed message: write its partition and its id, such as '3/d17'."
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.partition}/d{self.number}"

    @classmethod
    def of_member(cls, partition: int, member: bytes) -> DelayedRef | None:
        """Read a member of the zset; None if it is foreign. The inverse of `member`."""
        return cls(partition, int(member)) if _MEMBER.fullmatch(member) else None

    @property
    def member(self) -> str:
        """Return the number as it stands in the zset and the hash."""
        return f"{self.number:016d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayedMessage:
    """One message that waits."""

    ref: DelayedRef
    due: datetime
    """When it is moved, by the server's clock. If that is past, it waits for a worker. The end of the
    calendar means never, since its body cannot be read.
    """
    message_id: str | None
    message: Message
    """Its id is `d17`. It has no timestamp: it is not stored in its topic yet."""


@dataclass(slots=True)
class Cancelled:
    """How many messages were cancelled, and how many were not there any more."""

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
    keys_of = dict(partitions(bus, topic, None))
    existing = [ref for ref in dict.fromkeys(refs) if ref.partition in keys_of]
    asked = [("ZSCORE", keys_of[ref.partition].delayed, ref.member) for ref in existing]
    return sum(check(reply) is not None for reply in bus.client.pipe(asked))


def find(
    bus: Bus, topic: str, partition: int | None = None, chosen: Partitions | None = None
) -> Iterator[DelayedMessage]:
    """Yield the messages that wait, in order of due time over all partitions.

    They are read in pages as they are asked for. Raises UnknownTopic and ConfigurationError (no such
    partition) at once, and BusUnavailable. `chosen`: what `partitions` returns, if the caller has asked
    already.
    """
    chosen = partitions(bus, topic, partition) if chosen is None else chosen
    rows = (_rows(bus, number, keys, MESSAGES_A_READ) for number, keys in chosen)
    return _read(bus, topic, heapq.merge(*rows))


def refs(bus: Bus, topic: str, partition: int | None = None) -> Iterator[DelayedRef]:
    """Yield which messages wait now, partition by partition in due order, without reading them.

    Messages that are published from now on are left out, so this ends. Raises what `find` raises.
    """
    chosen = partitions(bus, topic, partition)
    lasts = bus.client.pipe([("HGET", keys.delayed_body, "last") for _, keys in chosen])
    return (
        ref
        for (number, keys), last in zip(chosen, lasts, strict=True)
        for _due, ref in _rows(bus, number, keys, REFS_A_READ)
        if ref.number <= _last_number(check(last))
    )


def _last_number(raw: bytes | None) -> float:
    """Return the last number that was given; infinity if that cannot be read: then no more can be given."""
    return int(raw) if raw is not None and raw.isdigit() else math.inf


def _read(bus: Bus, topic: str, rows: Iterator[tuple[float, DelayedRef]]) -> Iterator[DelayedMessage]:
    """Yield the messages of rows, whose bodies are read a page at a time, from however many partitions."""
    while page := list(islice(rows, MESSAGES_A_READ)):
        asked = [
            ("HGET", bus.keys.partition(topic, ref.partition).delayed_body, ref.member) for _, ref in page
        ]
        for (due, ref), reply in zip(page, bus.client.pipe(asked), strict=True):
            body = check(reply)
            if body is not None:  # else it was moved or cancelled meanwhile
                yield _message(topic, ref, due, body)


def _rows(bus: Bus, partition: int, keys: PartitionKeys, size: int) -> Iterator[tuple[float, DelayedRef]]:
    """Yield due time and ref of what waits in one partition, in order; `size` in one read.

    Rows that come or go meanwhile make no other row be left out or come twice. Each read begins with the last
    row of the read before, and goes back where it does not meet that row again.
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
    """Return a due time. Beyond the calendar, for what will never be moved, it is the calendar's end."""
    return datetime.fromtimestamp(max(0.0, min(milliseconds, _LAST_MS)) / 1000, UTC)


def split(body: bytes) -> list[bytes] | None:
    """Return the parts of a body: message_id, field, value, …; None if `move.lua` could not read it."""
    try:
        parts = netstrings.unpack(body)
    except ValueError:
        return None
    return parts if len(parts) >= 3 and len(parts) % 2 else None


# ---------------------------------------------------------------------- cancelling


def batches(refs: Iterable[DelayedRef]) -> Iterator[list[DelayedRef]]:
    """Yield refs as they are to be cancelled, at most REFS_A_RECORD at a time."""
    rest = iter(refs)
    while batch := list(islice(rest, REFS_A_RECORD)):
        yield batch


@verb("cancel delayed")
def cancel(bus: Bus, topic: str, refs: Sequence[DelayedRef]) -> list[bool]:
    """Remove messages that wait; return for each whether it was there. Works while memory is full.

    Their message_ids are free again. A message that was not there was moved or cancelled before. Raises
    UnknownTopic, and BusUnavailable or ReplyLost; then some may have been cancelled.
    """
    refs_of: dict[int, list[DelayedRef]] = {}
    keys_of = dict(partitions(bus, topic, None))
    for ref in dict.fromkeys(refs):
        refs_of.setdefault(ref.partition, []).append(ref)
    cancelled: set[DelayedRef] = set()
    for number, of_partition in refs_of.items():
        left = of_partition if number in keys_of else []
        while left:
            page, left = left[:REFS_A_SCRIPT], left[REFS_A_SCRIPT:]
            codes = run(bus.client, "cancel", own_keys(keys_of[number]), [ref.member for ref in page])
            cancelled.update(ref for ref, code in zip(page, codes, strict=True) if code == 1)
            left[:0] = [ref for ref, code in zip(page, codes, strict=True) if code == _LATER]
    return [ref in cancelled for ref in refs]


def own_keys(keys: PartitionKeys) -> list[str]:
    """Return the first keys of `move.lua` and `cancel.lua`."""
    return [keys.stream, keys.delayed, keys.delayed_body]


def partitions(bus: Bus, topic: str, partition: int | None) -> Partitions:
    """Return the partitions that are meant. Raises UnknownTopic, ForeignData or ConfigurationError."""
    spec = bus.registry.stored(topic)
    if partition is not None and not 0 <= partition < spec.partitions:
        raise ConfigurationError(f"Topic {topic!r} has the partitions 0 to {spec.partitions - 1}.")
    numbers = range(spec.partitions) if partition is None else [partition]
    return [(number, bus.keys.partition(topic, number)) for number in numbers]
