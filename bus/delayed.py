"""Messages that wait until they are due: moved into their topic then, listed, cancelled before.

Publishing with `delay=` or `at=` keeps a message beside the stream of its partition (`delay.lua`). Upkeep
calls `move_due` all the time. A waiting message is addressed by its `DelayedRef`, written `3/d17`: the
partition, and the id in the receipt of its publish. `bus.operate` adds the audit to `cancel`.
"""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from bus import codec, netstrings
from bus.errors import BusError, BusFull, BusUnavailable, ConfigurationError, ServerError, UnknownTopic
from bus.streams.commands import run_many
from bus.streams.connect import check, error_of
from bus.values import Message
from bus.verbs import verb

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.keys import PartitionKeys
    from bus.streams.wire import Argument, Command

#: How often upkeep looks for what is due. Seconds; half of what a message may be late by.
MOVE_SECONDS = 0.5
#: After so long `move_due` leaves the rest to its next call: other upkeep has its turn. Seconds.
BUSY_SECONDS = 1.0

#: Messages, and about how many bytes of them, that one script moves: a few milliseconds of the server's time.
CHUNK = 100
CHUNK_BYTES = 1 << 20
#: Partitions whose scripts are sent in one write, far below what the client's timeout allows.
AT_ONCE = 20
#: Commands in one write where every partition is looked at.
PIPELINE = 20_000
#: Messages in one read of a list: each may be as large as MAX_MESSAGE_BYTES.
PAGE = 50
#: Messages whose numbers alone are read, or that are cancelled, at a time.
BATCH = 1000

_REF = re.compile(r"(\d{1,4})/d(\d{1,15})", re.ASCII)
#: What the body of a message is called where it cannot be read.
_UNREADABLE = b"delayed"
#: The last moment that a datetime can be, with room for a time zone.
_LAST_MS = datetime(9999, 12, 30, tzinfo=UTC).timestamp() * 1000

#: A partition: topic and number.
_Place = tuple[str, int]
_Failure = tuple[_Place, BusError]


@dataclass(frozen=True, slots=True, order=True)
class DelayedRef:
    """Which message that waits: its partition, and its number there in the order of publishing."""

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

    @property
    def member(self) -> str:
        """As it stands in the zset and the hash."""
        return f"{self.number:016d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayedMessage:
    """One message that waits."""

    ref: DelayedRef
    due: datetime
    """When it is moved, by the server's clock; a time in the past: it waits for a worker."""
    message_id: str | None
    message: Message
    """Its id is `d17`. It has no timestamp: it is not stored in its topic yet."""


@dataclass(slots=True)
class Cancelled:
    """How many messages that were to be cancelled were, and how many were not there any more."""

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


# ---------------------------------------------------------------------- moving


def move_due(bus: Bus) -> int:
    """Move what is due into its partitions, in order of due time, then of publishing; how many messages.

    One look at all partitions, then one script for each that has something due, until nothing is, or
    for BUSY_SECONDS. Several callers at once do no harm. Makes a stream that has vanished again, with
    its groups. Raises BusUnavailable, or at the end, when all other partitions are done, the error of
    the first in which something went wrong: BusFull where memory is full (it stays due), BusError.
    """
    due, failures = _look(bus)
    moved, ends = 0, time.monotonic() + BUSY_SECONDS
    while due and time.monotonic() < ends:
        now, due = due[:AT_ONCE], due[AT_ONCE:]
        for place, reply in zip(now, _move(bus, now), strict=True):
            if isinstance(reply, BusError):
                failures.append((place, reply))
                continue
            if reply is None:
                continue  # the topic was deleted
            some, lost, _next_due, more = reply
            moved += some
            if lost:
                text = f"{lost} messages are lost: something removed their bodies from Redis"
                failures.append((place, BusError(text)))
            if more:
                due.append(place)
    if failures:
        raise _failure(*failures[0], others=len(failures) - 1)
    return moved


def _look(bus: Bus) -> tuple[list[_Place], list[_Failure]]:
    """The partitions in which something is due, those with the earliest first; and those that err."""
    places = [(spec.name, n) for spec in bus.registry.specs().values() for n in range(spec.partitions)]
    found: list[tuple[float, _Place]] = []
    failures: list[_Failure] = []
    for at in range(0, len(places), PIPELINE):
        some = places[at : at + PIPELINE]
        asked: list[Command] = [
            ("ZRANGE", bus.keys.partition(*place).delayed, 0, 0, "WITHSCORES") for place in some
        ]
        clock, *replies = bus.client.pipe([("TIME",), *asked])
        seconds, micros = check(clock)
        now = int(seconds) * 1000 + int(micros) // 1000
        for place, reply in zip(some, replies, strict=True):
            if isinstance(reply, ServerError):
                failures.append((place, error_of(reply)))
            elif reply and float(reply[1]) <= now:
                found.append((float(reply[1]), place))
    return [place for _, place in sorted(found)], failures


def _move(bus: Bus, places: Sequence[_Place]) -> list[Any]:
    """The replies of `move.lua`, errors among them; None where the topic is gone."""
    replies = _run_move(bus, places)
    vanished = [index for index, reply in enumerate(replies) if reply is None]
    if not vanished:
        return replies
    known = bus.registry.specs()
    restored = []
    for index in vanished:
        topic, partition = places[index]
        if topic in known:
            try:
                bus.registry.restore_partition(topic, partition)
                restored.append(index)
            except UnknownTopic:
                continue
            except BusError as error:
                replies[index] = error
    for index, reply in zip(restored, _run_move(bus, [places[index] for index in restored]), strict=True):
        replies[index] = reply
    return replies


def _run_move(bus: Bus, places: Sequence[_Place]) -> list[Any]:
    calls: list[tuple[list[str], list[Argument]]] = [
        (_keys(bus.keys.partition(*place)), [CHUNK, CHUNK_BYTES]) for place in places
    ]
    replies = run_many(bus.client, "move", calls)
    return [error_of(reply) if isinstance(reply, ServerError) else reply for reply in replies]


def _keys(keys: PartitionKeys) -> list[str]:
    return [keys.stream, keys.delayed, keys.delayed_body]


def _failure(place: _Place, error: BusError, *, others: int) -> BusError:
    kind = next((one for one in (BusFull, BusUnavailable) if isinstance(error, one)), BusError)
    more = f" So it is in {others} more partitions." if others else ""
    return kind(f"Delayed messages of {place[0]}/{place[1]} cannot be moved: {error}.{more}")


# ---------------------------------------------------------------------- looking


def count(bus: Bus, topic: str, partition: int | None = None) -> int:
    """How many messages wait in a topic, or in one of its partitions. Raises as `find`."""
    asked = [("ZCARD", keys.delayed) for _, keys in _partitions(bus, topic, partition)]
    return sum(check(reply) for reply in bus.client.pipe(asked))


def present(bus: Bus, topic: str, refs: Iterable[DelayedRef]) -> int:
    """How many of these messages still wait. Raises UnknownTopic and BusUnavailable."""
    known = dict(_partitions(bus, topic, None))
    wanted = [ref for ref in dict.fromkeys(refs) if ref.partition in known]
    asked = [("ZSCORE", known[ref.partition].delayed, ref.member) for ref in wanted]
    return sum(check(reply) is not None for reply in bus.client.pipe(asked))


def find(bus: Bus, topic: str, partition: int | None = None) -> Iterator[DelayedMessage]:
    """The messages that wait, in order of due time over all partitions; read in pages as they are asked for.

    Raises UnknownTopic, ConfigurationError (no such partition), at once, and BusUnavailable.
    """
    chosen = _partitions(bus, topic, partition)
    return _read(bus, topic, heapq.merge(*(_rows(bus, number, keys, PAGE) for number, keys in chosen)))


def refs(bus: Bus, topic: str, partition: int | None = None) -> Iterator[DelayedRef]:
    """Which messages wait now, partition by partition in due order, without reading them.

    What is published from now on is left out, so this ends. Raises as `find`.
    """
    chosen = _partitions(bus, topic, partition)
    lasts = bus.client.pipe([("HGET", keys.delayed_body, "last") for _, keys in chosen])
    return (
        ref
        for (number, keys), last in zip(chosen, lasts, strict=True)
        for _due, ref in _rows(bus, number, keys, BATCH)
        if ref.number <= int(check(last) or 0)
    )


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
            if row > last:
                yield row.due, DelayedRef(partition, int(row.member))
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
        message_id=message_id.decode("utf-8", "backslashreplace") or None,
        message=Message(topic, ref.partition, f"d{ref.number}", fields, codec.decode),
    )


def moment(milliseconds: float) -> datetime:
    """A due time; one beyond the calendar, which only a foreign hand can have written, is its end."""
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
    partitions: dict[int, list[DelayedRef]] = {}
    known = dict(_partitions(bus, topic, None))
    for ref in dict.fromkeys(refs):
        partitions.setdefault(ref.partition, []).append(ref)
    chunks = [
        some[at : at + CHUNK]
        for number, some in partitions.items()
        if number in known
        for at in range(0, len(some), CHUNK)
    ]
    calls = [(_keys(known[some[0].partition]), [ref.member for ref in some]) for some in chunks]
    cancelled: set[DelayedRef] = set()
    for some, reply in zip(chunks, run_many(bus.client, "cancel", calls), strict=True):
        cancelled.update(ref for ref, removed in zip(some, check(reply), strict=True) if removed)
    return [ref in cancelled for ref in refs]


def _partitions(bus: Bus, topic: str, partition: int | None) -> list[tuple[int, PartitionKeys]]:
    """The partitions that are meant. Raises UnknownTopic or ConfigurationError."""
    spec = bus.registry.specs().get(topic)
    if spec is None:
        raise UnknownTopic(topic)
    if partition is not None and not 0 <= partition < spec.partitions:
        raise ConfigurationError(f"Topic {topic!r} has the partitions 0 to {spec.partitions - 1}.")
    numbers = range(spec.partitions) if partition is None else [partition]
    return [(number, bus.keys.partition(topic, number)) for number in numbers]
