"""The pending list: messages that a group was given and has not settled, and what each is waiting for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from bus import codec
from bus.errors import ConfigurationError, UnknownGroup, UnknownTopic
from bus.keys import pad_id
from bus.lane import Failure, key_hash
from bus.streams.commands import is_nogroup, text
from bus.streams.connect import check, seconds_of
from bus.values import Message, Ordering

if TYPE_CHECKING:
    from bus.client import Bus

#: Pending messages in one read; each may be as large as MAX_MESSAGE_BYTES.
PAGE = 50

State = Literal["retrying", "held back", "in hand", "trimmed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingMessage:
    """One message that was given and is not settled."""

    message: Message
    state: State
    """retrying: it failed, and waits for `due`. held back: behind a failing message of its key. in hand:
    a worker has it, or has had it and died. trimmed: it is gone from the stream, which will be noticed."""
    lane: str
    """The lane that it was given to."""
    attempts: int
    """Tries so far that failed."""
    error: str
    first: datetime | None
    """When it failed first; None if it has not."""
    due: datetime | None
    """When it is tried again; None unless it is retrying."""
    age: timedelta
    """Since it was published, by the server's clock."""


def find(bus: Bus, topic: str, group: str, *, partition: int | None = None) -> Iterator[PendingMessage]:
    """The pending messages of a group, partition by partition and in their order, read in pages.

    Raises UnknownTopic, UnknownGroup, ConfigurationError (no such partition), at once, and BusUnavailable.
    """
    spec = bus.registry.specs().get(topic)
    if spec is None:
        raise UnknownTopic(topic)
    ordering = next((one.ordering for one in bus.registry.groups(topic) if one.name == group), None)
    if ordering is None:
        raise UnknownGroup(topic, group)
    if partition is not None and not 0 <= partition < spec.partitions:
        raise ConfigurationError(f"Topic {topic!r} has the partitions 0 to {spec.partitions - 1}.")
    numbers = range(spec.partitions) if partition is None else [partition]
    return (found for number in numbers for found in _Walk(bus, topic, group, number, ordering))


class _Walk:
    """The pending list of one partition."""

    def __init__(self, bus: Bus, topic: str, group: str, partition: int, ordering: Ordering) -> None:
        self._client = bus.client
        self._keys = bus.keys.partition(topic, partition)
        self._topic, self._group, self._partition, self._ordering = topic, group, partition, ordering

    def __iter__(self) -> Iterator[PendingMessage]:
        start = "-"
        while True:
            asked = ("XPENDING", self._keys.stream, self._group, start, "+", PAGE)
            reply = self._client.pipe([asked])[0]
            if is_nogroup(reply):
                return  # Redis has lost the group here, and its pending list with it
            rows = check(reply)
            if rows:
                yield from self._page([(text(row[0]), text(row[1])) for row in rows])
            if len(rows) < PAGE:
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
        states, dues, *entries = map(check, replies[1:])
        messages = [self._message(id, found) for id, found in zip(ids, entries, strict=True)]
        members = [f"{key_hash(self._ordering, one.raw.get(b'k'))}:{pad_id(one.id)}" for one in messages]
        held = self._client.call("ZMSCORE", keys.held(group), *members)
        clock = seconds_of(replies[0])
        for (_, lane), message, raw, due, waits in zip(rows, messages, states, dues, held, strict=True):
            yield _pending(message, lane, raw, due, waits is not None, clock)

    def _message(self, id: str, entries: Any) -> Message:
        fields = entries[0][1] if entries else []
        return Message(self._topic, self._partition, id, fields, codec.decode)


def _pending(
    message: Message, lane: str, raw: bytes | None, due: bytes | None, held: bool, now: float
) -> PendingMessage:
    failure = Failure.load(raw) if raw else Failure("")
    state: State = "retrying" if due is not None else "held back" if held else "in hand"
    return PendingMessage(
        message=message,
        state=state if message.raw else "trimmed",
        lane=lane,
        attempts=failure.attempts,
        error=failure.error,
        first=_moment(failure.first / 1000) if failure.first else None,
        due=_moment(float(due) / 1000) if due is not None else None,
        age=max(timedelta(0), timedelta(seconds=now) - timedelta(seconds=message.timestamp.timestamp())),
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
