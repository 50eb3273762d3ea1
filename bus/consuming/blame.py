"""Which lane of several it is that the server refuses a command for."""

from __future__ import annotations

from collections.abc import Sequence

from bus.consuming.lane import Lane
from bus.errors import ForeignData, ServerError
from bus.format import strangers
from bus.streams.wire import Link


def blame(link: Link, lanes: Sequence[Lane], error: ServerError) -> None:
    """Find out which key of these lanes is a stranger, and mark its lane: what it is dropped for.

    `error`: what the server said to a command for all of them. If no key is a stranger they all are marked.
    """
    types = [lane.keys.types(lane.id.group, lane.id.lane) for lane in lanes]
    replies = link.pipe([command for each in types for command in strangers.commands(each)])
    at, marked = 0, False
    for lane, each in zip(lanes, types, strict=True):
        found = strangers.among(each, replies[at : at + len(each)])
        at += len(each)
        if found:
            lane.trouble, lane.lost, marked = ForeignData(str(found[0])), True, True
    if not marked:
        for lane in lanes:
            where = f"{lane.id.topic}/{lane.id.partition} for {lane.id.group}"
            lane.trouble, lane.lost = ForeignData(f"{where}: {error}"), True
