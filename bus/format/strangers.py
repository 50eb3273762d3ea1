"""Keys that hold another type than Jitney writes there: somebody else has put them in its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bus.consuming.lane import Lane
from bus.errors import ForeignData, ServerError
from bus.safety.unreadable import Unreadable, tell
from bus.streams.commands import is_wrongtype, text
from bus.streams.connect import check
from bus.streams.wire import Command, Link

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


def name(link: Link, lanes: Sequence[Lane], error: ServerError) -> None:
    """Find out which key of these lanes is a stranger, and mark its lane: what it is dropped for.

    `error`: what the server said to a command for all of them. If no key is a stranger they all are marked.
    """
    types = [lane.keys.types(lane.id.group, lane.id.lane) for lane in lanes]
    replies = link.pipe([command for each in types for command in commands(each)])
    at, marked = 0, False
    for lane, each in zip(lanes, types, strict=True):
        strangers = among(each, replies[at : at + len(each)])
        at += len(each)
        if strangers:
            lane.trouble, lane.lost, marked = ForeignData(str(strangers[0])), True, True
    if not marked:
        for lane in lanes:
            where = f"{lane.id.topic}/{lane.id.partition} for {lane.id.group}"
            lane.trouble, lane.lost = ForeignData(f"{where}: {error}"), True
