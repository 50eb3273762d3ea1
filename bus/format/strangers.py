"""Finds keys of another type than Jitney writes: somebody else has put them there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bus.safety.unreadable import Unreadable, tell
from bus.streams.commands import is_wrongtype, text
from bus.streams.connect import check
from bus.streams.wire import Command

#: What TYPE says of a missing key.
_MISSING = "none"


def commands(types: Iterable[str]) -> list[Command]:
    """Return the commands whose replies `among` reads. `types`: keys, as of PartitionKeys.types."""
    return [("TYPE", key) for key in types]


def among(types: Mapping[str, str], replies: Sequence[Any]) -> list[Unreadable]:
    """Return the keys whose type is another one. `types`: key → type, as in `commands`."""
    strangers = []
    for (key, expected), reply in zip(types.items(), replies, strict=True):
        there = text(check(reply))
        if there not in (expected, _MISSING):
            strangers.append(Unreadable(key, "", f"a {there}", f"stands where a {expected} should be"))
    return strangers


def stands_at(key: str, reply: object) -> bool:
    """Return whether a reply says that the key is of another type; log it if so."""
    if not is_wrongtype(reply):
        return False
    tell(Unreadable(key, "", "", "is of another type than Jitney writes there"))
    return True
