"""Dead letters: where each is kept, and what its entry in the stream of dead letters says.

An entry has fields about the letter (id, reason, error, attempts, first, last), then those of its message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bus.errors import ConfigurationError
from bus.format import codec
from bus.moments import moment, whole
from bus.safety.unreadable import shown
from bus.streams.commands import text
from bus.values import Message, id_pair, known_id

#: The fields of a letter that are about it. They stand first; those of the message follow.
_ABOUT = frozenset((b"id", b"reason", b"error", b"attempts", b"first", b"last"))
_ORIGIN = re.compile(r"(\d{1,4})/(\d{1,20}-\d{1,20})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a dead letter is kept: its partition, and its own id."""

    partition: int
    id: str

    @classmethod
    def parse(cls, written: str) -> Origin:
        """Read an address such as `"3/1700-0"`. Raises ConfigurationError."""
        parts = _ORIGIN.fullmatch(written)
        if parts is None or max(id_pair(parts[2])) >= 2**64:
            raise ConfigurationError(
                f"{shown(written)} is no dead letter's id: write its partition and its own id, "
                "such as '3/1700-0'."
            )
        return cls(int(parts[1]), parts[2])

    def __str__(self) -> str:
        return f"{self.partition}/{self.id}"

    @property
    def order(self) -> tuple[tuple[int, int], int]:
        """The sort key: by the time of death, over all partitions."""
        return id_pair(self.id), self.partition


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that a group gave up on, and why."""

    place: Origin
    message: Message
    """The message as it was; its id and partition say where it came from."""
    reason: str
    error: str
    """The end of the last traceback, or the reason."""
    attempts: int
    first: datetime | None
    """When it failed first; None if that was not recorded."""
    last: datetime | None
    """When it was given up."""


def read(topic: str, partition: int, entry: Any) -> DeadLetter:
    """Read an entry of the stream of dead letters, whatever somebody has written there."""
    about, fields = _split(entry[1])
    place = Origin(partition, text(entry[0]))
    attempts = _whole(about.get(b"attempts"))
    original = known_id(about.get(b"id", b"")) or "0-0"
    return DeadLetter(
        place=place,
        message=Message(topic, partition, original, fields, codec.decode, attempts),
        reason=about.get(b"reason", b"").decode("utf-8", "replace"),
        error=about.get(b"error", b"").decode("utf-8", "replace"),
        attempts=attempts,
        first=_moment(about.get(b"first")),
        last=_moment(about.get(b"last")) or _moment(place.id.partition("-")[0].encode()),
    )


def _split(fields: list[bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Split an entry into fields about the letter and fields of its message, whatever those are called."""
    about: dict[bytes, bytes] = {}
    for at in range(0, len(fields), 2):
        if fields[at] not in _ABOUT or fields[at] in about:
            return about, fields[at:]
        about[fields[at]] = fields[at + 1]
    return about, []


def _moment(milliseconds: bytes | None) -> datetime | None:
    number = _whole(milliseconds)
    return moment(number) if number else None


def _whole(raw: bytes | None) -> int:
    """Return a number as turn.lua writes it; 0 for anything else."""
    try:
        return max(0, whole(raw)) if raw else 0
    except ValueError:
        return 0
