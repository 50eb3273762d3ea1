"""Reads the pending list: messages that a group was given and has not settled, and what each waits for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from bus.errors import ConfigurationError
from bus.format import codec, strangers
from bus.format.keys import pad_id
from bus.format.partition import key_hash
from bus.format.state import Failure
from bus.moments import moment
from bus.streams.commands import is_nogroup, text
from bus.streams.connect import check, seconds_of
from bus.topics.reordering import GroupPartition, read
from bus.values import Message, Ordering

if TYPE_CHECKING:
    from bus.client import Bus

#: Messages in one read: each may be as large as MAX_MESSAGE_BYTES.
MESSAGES_A_READ = 50

State = Literal["retrying", "held back", "in hand", "trimmed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingMessage:
    """One message that was given to a group and is not settled."""

    message: Message
    state: State
    """retrying: it failed, and waits for `due`. held back: it waits behind a failing message of its key. in
    hand: a worker has it, or had it and died. trimmed: it is gone from the stream, which will be noticed."""
    lane: str
    """The lane that it was given to."""
    attempts: int
    """How many tries have failed so far."""
    error: str
    first: datetime | None
    """When it failed first; None if it has not failed."""
    due: datetime | None
    """When it is tried again; None unless it is retrying."""
    age: timedelta
    """The time since it was published, by the server's clock."""


def find(bus: Bus, topic: str, group: str, *, partition: int | None = None) -> Iterator[PendingMessage]:
    """Yield the pending messages of a group, partition by partition and in their order, read in pages.

    Raises UnknownTopic, UnknownGroup, ForeignData and ConfigurationError (no such partition) at once, and
    BusUnavailable. A partition with a key of another type is passed over, and the log tells of it.
    """
    spec = bus.registry.stored(topic)
    ordering = bus.registry.group(topic, group).ordering
    if partition is not None and not 0 <= partition < spec.partitions:
        raise ConfigurationError(f"Topic {topic!r} has the partitions 0 to {spec.partitions - 1}.")
    numbers = range(spec.partitions) if partition is None else [partition]
    effects = read(bus, [(GroupPartition(topic, group, number), ordering) for number in numbers])
    return (message for place, effect in effects.items() for message in _Walk(bus, place, effect))


class _Walk:
    """A walk through the pending list of one partition."""

    def __init__(self, bus: Bus, place: GroupPartition, ordering: Ordering) -> None:
        self._client = bus.client
        self._keys = bus.keys.partition(place.topic, place.partition)
        self._topic, self._group, self._partition = place.topic, place.group, place.partition
        self._ordering = ordering

    def __iter__(self) -> Iterator[PendingMessage]:
        start = "-"
        while True:
            asked = ("XPENDING", self._keys.stream, self._group, start, "+", MESSAGES_A_READ)
            reply = self._client.pipe([asked])[0]
            if is_nogroup(reply) or strangers.stands_at(self._keys.stream, reply):
                return  # the group is gone here, and its pending list with it
            rows = check(reply)
            if rows:
                yield from self._page([(text(row[0]), text(row[1])) for row in rows])
            if len(rows) < MESSAGES_A_READ:
                return
            start = f"({text(rows[-1][0])}"

    def _page(self, rows: list[tuple[str, str]]) -> Iterator[PendingMessage]:
        ids, keys, group = [id for id, _ in rows], self._keys, self._group
        replies = self._client.pipe(
            [
                ("TIME",),
                ("HMGET", keys.state(group), *ids),
                ("ZMSCORE", keys.retry(group), *ids),
                *(("XRANGE", keys.stream, id, id) for id in ids),
            ]
        )
        unknown = [None] * len(ids)
        for index, key in ((1, keys.state(group)), (2, keys.retry(group))):
            if strangers.stands_at(key, replies[index]):
                replies[index] = unknown
        states, dues, *entries = map(check, replies[1:])
        messages = [self._message(id, at_id) for id, at_id in zip(ids, entries, strict=True)]
        members = [
            f"{key_hash(self._ordering, message.raw.get(b'k'))}:{pad_id(message.id)}" for message in messages
        ]
        held = self._client.pipe([("ZMSCORE", keys.held(group), *members)])[0]
        held = unknown if strangers.stands_at(keys.held(group), held) else check(held)
        clock = seconds_of(replies[0])
        for (_, lane), message, raw, due, waits in zip(rows, messages, states, dues, held, strict=True):
            failure = Failure.load(raw, keys.state(group), message.id)
            yield _pending(message, lane, failure, due, waits is not None, clock)

    def _message(self, id: str, entries: Any) -> Message:
        fields = entries[0][1] if entries else []
        return Message(self._topic, self._partition, id, fields, codec.decode)


def _pending(
    message: Message, lane: str, failure: Failure, due: bytes | None, held: bool, now: float
) -> PendingMessage:
    state: State = "retrying" if due is not None else "held back" if held else "in hand"
    return PendingMessage(
        message=message,
        state=state if message.raw else "trimmed",
        lane=lane,
        attempts=failure.attempts,
        error=failure.error,
        first=moment(failure.first) if failure.first else None,
        due=moment(float(due)) if due is not None else None,
        age=max(timedelta(0), timedelta(seconds=now) - timedelta(seconds=message.timestamp.timestamp())),
    )
