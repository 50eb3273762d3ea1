"""Finds the lane, of several, for which the server refuses a command."""

from __future__ import annotations

from collections.abc import Sequence

from bus.consuming.lane import Lane
from bus.errors import ForeignData, ServerError
from bus.format import strangers
from bus.streams.wire import Link


def blame(link: Link, lanes: Sequence[Lane], error: ServerError) -> None:
    """Find the key of these lanes that holds something foreign, and mark its lane, so that the slice drops
    it.

    `error`: what the server said to a command for all of them. If no key is foreign, all lanes are marked.
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
