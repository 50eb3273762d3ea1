"""Keys that hold another type than Jitney writes there: somebody else has put them in its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bus.safety.unreadable import Unreadable, tell
from bus.streams.commands import is_wrongtype, text
from bus.streams.connect import check
from bus.streams.wire import Command

_ABSENT = "none"


def commands(types: Iterable[str]) -> list[Command]:
    """What is asked of the server for keys, such as those of PartitionKeys.types."""
    return [("TYPE", key) for key in types]


def among(types: Mapping[str, str], replies: Sequence[Any]) -> list[Unreadable]:
    """Those whose type is not as it should be: `types` is key → type, as in `commands`."""
    found = []
    for (key, wanted), reply in zip(types.items(), replies, strict=True):
        there = text(check(reply))
        if there not in (wanted, _ABSENT):
            found.append(Unreadable(key, "", f"a {there}", f"stands where a {wanted} should be"))
    return found


def stands_at(key: str, reply: object) -> bool:
    """Whether a reply says that the key is of another type; then it is told of in the log too."""
    if not is_wrongtype(reply):
        return False
    tell(Unreadable(key, "", "", "is of another type than Jitney writes there"))
    return True
