"""Reads messages: the newest, one by its id, and new ones as they come. Marks nothing as read."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from bus.client import Bus
from bus.format import codec, strangers
from bus.observe.facts import ask, stream_command, stream_facts
from bus.observe.reading import spec_of
from bus.streams.commands import is_nogroup, text
from bus.streams.connect import check
from bus.streams.wire import Link
from bus.topics.registry import SPEC_SECONDS
from bus.values import Message, TopicSpec, id_pair

#: About how many messages one read of a tail brings, over all partitions.
_MESSAGES_A_READ = 1_000

#: How long a tail waits for messages before it asks again whether it should stop. Seconds.
_TAIL_PAUSE = 1.0

_MAX_ID_PART = 2**64 - 1


def latest(
    bus: Bus, topic: str, count: int = 50, partition: int | None = None, spec: TopicSpec | None = None
) -> list[Message]:
    """Return the newest messages of a topic, or of one partition, newest first. Raises UnknownTopic.

    `spec`: that of the topic, where the caller has asked already.

    Asks each partition for its fair part first, and for more only where that was not enough.
    """
    spec = spec or spec_of(bus, topic)
    partitions = [number for number in range(spec.partitions) if partition in (None, number)]
    pages = [_Newest(bus, topic, number) for number in partitions]
    size = -(-count // max(1, len(pages)))
    while True:
        messages = sorted((message for page in pages for message in page.messages), key=_order, reverse=True)
        newest = messages[:count]
        open_pages = [page for page in pages if page.may_add_to(newest, count)]
        if not open_pages:
            return newest
        replies = ask(bus.client, [page.command(size) for page in open_pages])
        for page, reply in zip(open_pages, replies, strict=True):
            page.take(size, reply)
        size = min(count, size * 2)


class _Newest:
    """The newest messages of one partition, read backwards in pages."""

    def __init__(self, bus: Bus, topic: str, partition: int) -> None:
        self._topic, self._partition = topic, partition
        self._stream = bus.keys.partition(topic, partition).stream
        self._complete = False
        self.messages: list[Message] = []

    def may_add_to(self, newest: list[Message], count: int) -> bool:
        """Return whether an older message from here could be among the `count` newest."""
        if self._complete or count <= 0:
            return False
        return len(newest) < count or not self.messages or _order(self.messages[-1]) > _order(newest[-1])

    def command(self, size: int) -> tuple[str | int, ...]:
        end = f"({self.messages[-1].id}" if self.messages else "+"
        return ("XREVRANGE", self._stream, end, "-", "COUNT", size)

    def take(self, size: int, reply: Any) -> None:
        # Of another type: there is no message in it, and the other partitions have some.
        entries = [] if strangers.stands_at(self._stream, reply) else check(reply)
        self._complete = len(entries) < size
        self.messages += [_message(self._topic, self._partition, entry) for entry in entries]


def message(bus: Bus, topic: str, partition: int, id: str) -> Message | None:
    """Return one message; None if it was trimmed, never was, or `id` is not an id. Raises UnknownTopic."""
    spec = spec_of(bus, topic)
    if not 0 <= partition < spec.partitions or not _is_id(id):
        return None
    stream = bus.keys.partition(topic, partition).stream
    reply = bus.client.pipe([("XRANGE", stream, id, id)])[0]
    entries = [] if strangers.stands_at(stream, reply) else check(reply)
    return _message(topic, partition, entries[0]) if entries else None


def tail(bus: Bus, topic: str, *, stop: Callable[[], bool], from_now: bool = True) -> Iterator[Message]:
    """Yield messages of all partitions as they are stored, until `stop()` is true (asked about each second).

    `from_now`: begin with what comes next; else with the oldest message that is kept. New partitions are
    followed too. In the order of each partition; across partitions as they arrive. Raises UnknownTopic
    (also when the topic is deleted meanwhile) and BusUnavailable.
    """
    after = _positions(bus, topic, spec_of(bus, topic).partitions, from_now=from_now)
    fresh_until = time.monotonic() + SPEC_SECONDS
    # A block ends up to a tenth of a second late, because the server looks at its clock that often.
    link = bus.client.endpoint.connect(timeout=_TAIL_PAUSE + max(1.0, bus.client.endpoint.timeout))
    try:
        while not stop():
            if time.monotonic() > fresh_until:
                after += ["0-0"] * (spec_of(bus, topic).partitions - len(after))
                fresh_until = time.monotonic() + SPEC_SECONDS
            for message in _read(bus, link, topic, after):
                after[message.partition] = message.id
                yield message
    finally:
        link.close()


def _positions(bus: Bus, topic: str, partitions: int, *, from_now: bool) -> list[str]:
    if not from_now:
        return ["0-0"] * partitions
    streams = [bus.keys.partition(topic, number).stream for number in range(partitions)]
    replies = ask(bus.client, [stream_command(stream) for stream in streams])
    return [facts.last_id if facts and facts.last_id else "0-0" for facts in map(stream_facts, replies)]


def _read(bus: Bus, link: Link, topic: str, after: list[str]) -> list[Message]:
    """Return what comes within _TAIL_PAUSE."""
    block = int(_TAIL_PAUSE * 1000)
    streams = [bus.keys.partition(topic, number).stream for number in range(len(after))]
    page = max(1, _MESSAGES_A_READ // len(streams))
    reply = link.call("XREAD", "COUNT", page, "BLOCK", block, "STREAMS", *streams, *after)
    if is_nogroup(reply):  # UNBLOCKED: the server became a replica while it waited, where reading goes on
        return []
    numbers = {stream: number for number, stream in enumerate(streams)}
    messages = [
        _message(topic, numbers[text(stream)], entry)
        for stream, entries in check(reply) or ()
        for entry in entries
    ]
    return sorted(messages, key=_order)


def _message(topic: str, partition: int, entry: Any) -> Message:
    return Message(topic, partition, text(entry[0]), entry[1], codec.decode)


def _order(message: Message) -> tuple[tuple[int, int], int]:
    return id_pair(message.id), message.partition


def _is_id(candidate: str) -> bool:
    digits = re.fullmatch(r"[0-9]{1,20}-[0-9]{1,20}", candidate)
    return digits is not None and max(id_pair(candidate)) <= _MAX_ID_PART
