"""Drafts: messages that are checked and encoded, and not sent yet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bus.errors import InvalidMessage
from bus.format import codec
from bus.format.keys import PartitionKeys
from bus.format.partition import partition_of
from bus.moments import delay_seconds
from bus.publishing.options import PublishOptions
from bus.streams.commands import add_command, script
from bus.streams.wire import Argument, Command
from bus.values import Receipt

#: Longest message_id, in bytes of UTF-8: it becomes a part of the name of a key.
MAX_MESSAGE_ID = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A checked and encoded message. Made by `make`."""

    topic: str
    fields: list[bytes]
    key: bytes | None = None
    message_id: str | None = None
    """The id under which the server stores it once within the dedupe window; None: it has none."""
    due: tuple[str, int] | None = None
    """("in", milliseconds from now) or ("at", milliseconds since 1970), both by the server's clock."""

    def partition(self, partitions: int, rota: Callable[[], int]) -> int:
        """Return the partition number, of so many: by the key, else by the message_id, else by rotation.

        A second copy with the same message_id so meets the first. `rota` returns a number that grows.
        """
        if partitions == 1:
            return 0
        if self.key is not None:
            return partition_of(self.key, partitions)
        if self.message_id is not None:
            return partition_of(self.message_id, partitions)
        return rota() % partitions

    def command(self, keys: PartitionKeys, window: int, *, by_text: bool = False) -> Command:
        """Return the command that stores it in the partition with these keys.

        `window`: seconds for which the server knows its message_id. `by_text`: with the text of the script,
        which the server does not know. The reply is an id, or nil if the stream is missing, or what
        `once.lua` and `delay.lua` say.
        """
        if self.message_id is None and self.due is None:
            return add_command(keys.stream, self.fields)
        id_keys = [] if self.message_id is None else [keys.once(self.message_id)]
        if self.due is None:
            return dedupe_command(keys.stream, id_keys, [self.fields], window, by_text=by_text)
        own = [keys.stream, keys.delayed, keys.delayed_body, keys.due, *id_keys]
        args: list[Argument] = [*self.due, window, keys.due_member, *self.fields]
        delay = script("delay")
        return delay.by_text(own, args) if by_text else delay.by_sha(own, args)


def make(topic: str, value: Any, options: PublishOptions, *, max_bytes: int) -> Draft:
    """Check and encode a message; no I/O.

    `max_bytes`: the most that value, key and headers may have together. Raises InvalidMessage, which says
    what is wrong, also for a message_id that has not 1 to MAX_MESSAGE_ID bytes, and a delay below 0.
    """
    key, headers, message_id, delay, at = options
    fields = codec.encode(topic, value, key, headers, max_bytes=max_bytes)
    if message_id is not None:
        _check_message_id(topic, message_id)
    return Draft(
        topic=topic,
        fields=fields,
        key=None if key is None else key.encode(),
        message_id=message_id,
        due=_due(topic, delay, at),
    )


def dedupe_command(
    stream: str, id_keys: list[str], messages: list[list[bytes]], window: int, *, by_text: bool = False
) -> Command:
    """Return the call of `once.lua` that stores messages of one partition, each once.

    `id_keys`: the keys of their message_ids. `messages`: the stream fields of each. `window`: seconds for
    which the server knows the ids. `by_text`: with the text of the script.
    """
    args: list[Argument] = [window]
    for fields in messages:
        args += [len(fields), *fields]
    keys = [stream, *id_keys]
    once = script("once")
    return once.by_text(keys, args) if by_text else once.by_sha(keys, args)


def receipt_of(topic: str, partition: int, reply: Any) -> Receipt:
    """Return the receipt in the reply to a stored message: neither an error nor nil."""
    if isinstance(reply, bytes):
        return Receipt(topic, partition, reply.decode())
    message_id, duplicate = reply[0]
    return Receipt(topic, partition, message_id.decode(), bool(duplicate))


def _check_message_id(topic: str, message_id: object) -> None:
    if not isinstance(message_id, str):
        raise InvalidMessage(
            f"Message for {topic!r}: message_id must be a str, not {type(message_id).__name__} "
            f"({message_id!r}). Write str(...) around it."
        )
    try:
        size = len(message_id.encode())
    except UnicodeEncodeError as error:
        raise InvalidMessage(
            f"Message for {topic!r}: the message_id is not valid Unicode: {error}."
        ) from error
    if not 1 <= size <= MAX_MESSAGE_ID:
        raise InvalidMessage(
            f"Message for {topic!r}: a message_id has 1 to {MAX_MESSAGE_ID} bytes, this one {size}. "
            "Use a shorter name of the event, or a hash of it."
        )


def _due(topic: str, delay: float | timedelta | None, at: datetime | None) -> tuple[str, int] | None:
    if delay is not None and at is not None:
        raise InvalidMessage(f"Message for {topic!r}: give delay or at, not both.")
    if delay is not None:
        seconds = delay_seconds(delay)
        if seconds is None or seconds < 0:
            raise InvalidMessage(
                f"Message for {topic!r}: delay must be seconds, from 0 to 100 years, not {delay!r}."
            )
        return ("in", math.ceil(seconds * 1000)) if seconds else None
    if at is not None:
        return "at", _moment(topic, at)
    return None


def _moment(topic: str, at: object) -> int:
    if not isinstance(at, datetime):
        raise InvalidMessage(f"Message for {topic!r}: at must be an aware datetime, not {at!r}.")
    if at.utcoffset() is None:
        raise InvalidMessage(
            f"Message for {topic!r}: at={at.isoformat()!r} has no time zone, so it names no moment. "
            "Use an aware datetime, such as datetime.now(UTC) + timedelta(hours=1)."
        )
    return max(0, math.ceil(at.timestamp() * 1000))
