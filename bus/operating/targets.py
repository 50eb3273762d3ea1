"""What an operator asks for in a reset: the beginning, an offset, a time, so many messages back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from bus.errors import ConfigurationError
from bus.values import Position

Kind = Literal["earliest", "latest", "offset", "id", "time", "ago", "shift", "group", "positions"]

_OFFSET = re.compile(r"\d{1,19}", re.ASCII)
_ID = re.compile(r"\d{1,19}-\d{1,19}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a group is to go on, in any partition; see the functions below."""

    kind: Kind
    text: str = ""
    """What was asked for, for people."""
    number: int = 0
    """offset: of the next message. shift: how many messages on, or back. time: ms since 1970. ago: ms."""
    name: str = ""
    """group: whose position. id: the id after which the group goes on."""
    positions: Mapping[int, str] | None = None
    """positions: partition → id after which the group goes on, or the offset of the next message."""


def at(position: str | datetime | Position) -> Target:
    """The target "earliest", "latest", after a message id, or the first message at or after a time.

    Raises ConfigurationError.
    """
    parsed = Position.parse(position)
    if parsed.kind == "time":
        return Target("time", str(position), number=int(parsed.value))
    return Target(parsed.kind, parsed.value or parsed.kind, name=parsed.value)


def offset(number: int) -> Target:
    """The target "the next message is the one with this offset". Raises ConfigurationError below 0."""
    if number < 0:
        raise ConfigurationError(f"An offset is 0 or more, not {number}.")
    return Target("offset", f"offset {number}", number=number)


def ago(duration: timedelta) -> Target:
    """The target "the first message of the last so long", by the server's clock."""
    return Target("ago", f"{duration} ago", number=int(duration.total_seconds() * 1000))


def shift(messages: int) -> Target:
    """The target "so many messages further on", or back where it is negative; never beyond either end."""
    return Target("shift", f"{messages:+d} messages", number=messages)


def like(group: str) -> Target:
    """The target "where this other group of the topic is"."""
    return Target("group", f"the position of group {group}", name=group)


def exactly(positions: Mapping[int, str]) -> Target:
    """The target "in each partition here", by id or offset: what `bus group positions --export` has written.

    Raises ConfigurationError for a text that is neither.
    """
    for partition, position in positions.items():
        if _OFFSET.fullmatch(position) is None and _ID.fullmatch(position) is None:
            raise ConfigurationError(f"Partition {partition}: {position!r} is neither an offset nor an id.")
    return Target("positions", "the positions given", positions=dict(positions))
