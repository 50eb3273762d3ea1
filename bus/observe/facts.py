"""What Redis says of one partition, read with one command, so all of it is of the same moment.

`XINFO STREAM … FULL` holds the stream and its groups together. Two commands would not do: a message
that is added between them makes offsets and lag disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bus.errors import ServerError
from bus.observe.snapshots import PartitionSnapshot
from bus.streams.commands import fields_of, is_nogroup, text
from bus.streams.connect import Client, check
from bus.streams.wire import Command

#: Commands in one write. More are sent in several, so that replies do not pile up in the server.
COMMANDS_A_WRITE = 20_000

_NO_ID = "0-0"


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """One group of a stream."""

    position: str
    lag: int | None
    """The server's own figure; None where it does not know."""
    pending: int
    lanes: tuple[str, ...]
    """Consumer names."""


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """One stream and its groups."""

    length: int
    added: int
    """Messages ever stored: the offset that the next one gets."""
    first_id: str | None
    last_id: str | None
    deleted_id: str | None
    """The highest id ever removed by XDEL, which Jitney never uses; None if none was."""
    groups: dict[str, GroupFacts]


def stream_command(stream: str) -> Command:
    """Return the command whose reply `stream_facts` reads. COUNT 1: of lists only their first entry."""
    return ("XINFO", "STREAM", stream, "FULL", "COUNT", 1)


def stream_facts(reply: Any) -> StreamFacts | None:
    """Read the facts from a reply; None if there is no stream under the key."""
    if is_missing(reply):
        return None
    stream = fields_of(check(reply))
    entries = stream["entries"]
    return StreamFacts(
        length=stream["length"],
        added=stream["entries-added"],
        first_id=text(entries[0][0]) if entries else None,
        last_id=_id(stream["last-generated-id"]),
        deleted_id=_id(stream["max-deleted-entry-id"]),
        groups=dict(_group_facts(fields_of(group)) for group in stream["groups"]),
    )


def _group_facts(group: dict[str, Any]) -> tuple[str, GroupFacts]:
    lanes = tuple(text(fields_of(consumer)["name"]) for consumer in group["consumers"])
    facts = GroupFacts(text(group["last-delivered-id"]), group["lag"], group["pel-count"], lanes)
    return text(group["name"]), facts


def _id(raw: bytes) -> str | None:
    return None if text(raw) == _NO_ID else text(raw)


def is_missing(reply: Any) -> bool:
    """Return whether what was asked for is missing, or something foreign stands in its place."""
    return isinstance(reply, ServerError) and (reply.code == "WRONGTYPE" or is_nogroup(reply))


def number(reply: Any) -> int | None:
    """Read a count; 0 for a missing field of a hash; None if the key or the field holds something foreign."""
    if reply.__class__ is int:  # nearly all: a look at a large bus reads hundreds of thousands
        count: int = reply
        return count
    if is_missing(reply):
        return None
    value = check(reply) or 0
    if isinstance(value, bytes):
        return int(value) if value.isdigit() and len(value) < 20 else None
    return int(value)


def ask(client: Client, commands: Sequence[Command]) -> Iterator[Any]:
    """Yield the replies in order, in as few round trips as possible; errors are values among them."""
    for start in range(0, len(commands), COMMANDS_A_WRITE):
        yield from client.pipe(commands[start : start + COMMANDS_A_WRITE])


def partition_snapshot(topic: str, partition: int, facts: StreamFacts | None) -> PartitionSnapshot:
    return PartitionSnapshot(
        topic=topic,
        partition=partition,
        missing=facts is None,
        length=facts.length if facts else None,
        first_id=facts.first_id if facts else None,
        last_id=facts.last_id if facts else None,
        first_offset=facts.added - facts.length if facts else None,
        next_offset=facts.added if facts else None,
    )
