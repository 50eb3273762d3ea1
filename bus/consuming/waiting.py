"""Reads in pages what waits in a lane: records of failures, retries, and how much is held back.

There may be as much of it as HELD_LIMIT allows, each record with the end of a traceback. A command that reads
all at once would have the server answer nobody else meanwhile. So both are scanned; the first page of each is
all there is, nearly always, and comes with whatever else is asked. A scan finds all that is there from its
beginning to its end. What comes meanwhile comes by a verb that touches the lease, and so is looked for anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bus.consuming.steps import Ask, Steps
from bus.errors import ServerError
from bus.format.keys import PartitionKeys
from bus.streams.wire import Command

#: Records looked at by one command: of 4 KB each, the longest there are, a millisecond of the server's time.
RECORDS_A_COMMAND = 250

#: How many replies `first` has.
REPLIES = 3


@dataclass(frozen=True, slots=True)
class Waiting:
    """The waiting messages of a lane, as read."""

    state: list[bytes]
    """The fields of the state hash, each followed by its value."""
    retries: list[bytes]
    """Ids in the retry zset, each followed by its score; in no order."""
    held: int


def first(keys: PartitionKeys, group: str) -> list[Command]:
    """Return the commands for the first pages."""
    return [*_pages(keys, group, b"0", b"0"), ("ZCARD", keys.held(group))]


def rest(keys: PartitionKeys, group: str, replies: Sequence[Any]) -> Steps[Waiting | ServerError]:
    """Read the rest and return all of it, or the first error that comes.

    `replies`: those to `first`, none of which is an error.
    """
    (state_at, state), (retry_at, retries), held = replies
    state, retries = list(state), list(retries)
    while state_at != b"0" or retry_at != b"0":
        # One of them may be through: then it is not begun again.
        asked = _pages(keys, group, state_at, retry_at)
        pages = yield Ask(
            [command for command, at in zip(asked, (state_at, retry_at), strict=True) if at != b"0"]
        )
        for reply in pages:
            if isinstance(reply, ServerError):
                return reply
        if state_at != b"0":
            state_at, page = pages.pop(0)
            state += page
        if retry_at != b"0":
            retry_at, page = pages.pop(0)
            retries += page
    return Waiting(state, retries, held)


def _pages(keys: PartitionKeys, group: str, state_at: bytes, retry_at: bytes) -> list[Command]:
    return [
        ("HSCAN", keys.state(group), state_at, "COUNT", RECORDS_A_COMMAND),
        ("ZSCAN", keys.retry(group), retry_at, "COUNT", RECORDS_A_COMMAND),
    ]
