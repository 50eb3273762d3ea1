"""Classifies an error of the server: a lane is left out, the group is gone, or neither."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bus.consuming.lane import Lane
from bus.consuming.steps import Ask, Steps
from bus.errors import BusError, ForeignData, ServerError
from bus.format import strangers
from bus.streams.commands import is_nogroup, is_of_one_partition
from bus.streams.connect import error_of


class GroupGone(BusError):
    """Raised when a stream or its group is gone while a slice runs there. It must be made again."""


def blame(lanes: Sequence[Lane], error: ServerError) -> Steps[None]:
    """Find the key of these lanes that holds something foreign, and mark its lane, so that the slice drops
    it.

    `error`: what the server said to a command for all of them. If no key is foreign, all lanes are marked.
    """
    types = [lane.keys.types(lane.id.group, lane.id.lane) for lane in lanes]
    replies = yield Ask([command for of_lane in types for command in strangers.commands(of_lane)])
    at, marked = 0, False
    for lane, of_lane in zip(lanes, types, strict=True):
        foreign = strangers.among(of_lane, replies[at : at + len(of_lane)])
        at += len(of_lane)
        if foreign:
            lane.lose(ForeignData(str(foreign[0])))
            marked = True
    if not marked:
        for lane in lanes:
            where = f"{lane.id.topic}/{lane.id.partition} for {lane.id.group}"
            lane.lose(ForeignData(f"{where}: {error}"))


def blamed(lanes: Sequence[Lane], reply: Any) -> Steps[bool]:
    """Return True, and mark the lane, if this is the error of one of these lanes: a key of it holds something
    foreign. The slice goes on without that lane.
    """
    if not is_of_one_partition(reply):
        return False
    yield from blame(lanes, reply)
    return True


def accept(lane: Lane, replies: Sequence[Any]) -> Steps[bool]:
    """Return False, and mark the lane, if one of its replies is the error of a key with something foreign.

    Raises other errors.
    """
    for reply in replies:
        if (yield from blamed([lane], reply)):
            return False
    raise_first_error(replies)
    return True


def raise_first_error(replies: Iterable[Any]) -> None:
    """Raise the first error among the replies: GroupGone, or what the server's error stands for."""
    for reply in replies:
        if isinstance(reply, ServerError):
            if is_nogroup(reply):
                raise GroupGone(str(reply))
            raise error_of(reply)
