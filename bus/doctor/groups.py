"""Checks of the groups: what they lost, and who serves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bus import observe
from bus.client import Bus
from bus.doctor.finding import Finding
from bus.observe import GroupSnapshot

_LEAVE = "Leave removing to retention: no XTRIM, XDEL, or MAXLEN by other programs."

#: Groups named in one text.
_NAMED = 5


def examine(bus: Bus) -> Iterator[Finding]:
    """One finding for each kind of trouble; nothing if there is none."""
    groups = observe.groups(bus)
    yield from _lost(groups)


def _lost(groups: Sequence[GroupSnapshot]) -> Iterator[Finding]:
    told = [_losses(one) for one in groups if one.lost or one.lost_maybe]
    if told:
        text = f"Messages were removed from Redis before they were given: {_some(told)}."
        lately = any(one.lost_lately for one in groups)
        hint = f"`bus group describe` says where and when. {_LEAVE}"
        yield Finding("error" if lately else "warning", "lost", text, hint)
    gone = [f"{one.group} of {one.topic}: {one.trimmed:,}" for one in groups if one.trimmed]
    if gone:
        text = f"Messages were removed from Redis when they were given and not settled: {_some(gone)}."
        yield Finding("warning", "lost", text, _LEAVE)


def _losses(one: GroupSnapshot) -> str:
    lost, maybe = one.lost or 0, one.lost_maybe or 0
    number = f"{lost:,} to {lost + maybe:,}" if maybe else f"{lost:,}"
    return f"{one.group} of {one.topic}: {number}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
