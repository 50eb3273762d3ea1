"""Checks of the groups: what they lost, and who serves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bus.client import Bus
from bus.doctor.finding import Finding, some
from bus.observe import GroupSnapshot, Survey
from bus.observe.loss import loss_words
from bus.upkeep import newcomers

_LEAVE = "Leave removing to retention: no XTRIM, XDEL, or MAXLEN by other programs."


def examine(bus: Bus, survey: Survey) -> Iterator[Finding]:
    """One finding for each kind of trouble; nothing if there is none."""
    yield from _lost(survey.groups)
    yield from _unserved(survey.groups)
    yield from _refused(bus, survey)


def _lost(groups: Sequence[GroupSnapshot]) -> Iterator[Finding]:
    told = [_losses(one) for one in groups if one.lost or one.lost_maybe]
    if told:
        text = f"Messages were removed from Redis before they were given: {some(told)}."
        lately = any(one.lost_lately for one in groups)
        hint = f"`bus group describe` says where and when. {_LEAVE}"
        yield Finding("error" if lately else "warning", "lost", text, hint)
    gone = [f"{one.group} of {one.topic}: {one.trimmed:,}" for one in groups if one.trimmed]
    if gone:
        text = f"Messages were removed from Redis when they were given and not settled: {some(gone)}."
        yield Finding("warning", "lost", text, _LEAVE)


def _unserved(groups: Sequence[GroupSnapshot]) -> Iterator[Finding]:
    waiting = [one for one in groups if not one.workers and ((one.lag and one.lag.count) or one.pending)]
    if waiting:
        told = [f"{one.group} of {one.topic} ({_waiting(one)})" for one in waiting]
        hint = (
            "Start a worker that serves them. Where the handler is gone or has another group now, "
            "`bus group delete TOPIC GROUP`: until then their messages are kept for them."
        )
        yield Finding(
            "warning", "unserved", f"Groups with messages that no worker serves: {some(told)}.", hint
        )


def _waiting(one: GroupSnapshot) -> str:
    parts = []
    if one.lag and one.lag.count:
        parts.append(f"lag {one.lag.count:,}" if one.lag.exact else f"lag at least {one.lag.count:,}")
    if one.pending:
        parts.append(f"{one.pending:,} pending")
    return ", ".join(parts)


def _refused(bus: Bus, survey: Survey) -> Iterator[Finding]:
    made = {(spec.topic, spec.name) for spec in survey.declared.groups}
    for record in survey.unreadable:
        if record.key == bus.keys.groups:
            topic, _, group = record.field.partition("/")
            made.add((topic, group))
    refusals = newcomers.refusals(bus, made)
    told = [f"{one.group} on {one.topic} ({one.messages:,} messages)" for one in refusals]
    if told:
        text = f"New groups that were not made, because of BUS['NEW_GROUP_LIMIT']: {some(told)}."
        hint = (
            "`bus group create TOPIC GROUP --start earliest` (or latest) makes them, and their workers begin."
        )
        yield Finding("warning", "refused", text, hint)


def _losses(one: GroupSnapshot) -> str:
    lost, maybe = one.lost or 0, one.lost_maybe or 0
    return f"{one.group} of {one.topic}: {loss_words(lost, maybe)}"
