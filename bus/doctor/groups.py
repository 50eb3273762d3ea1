"""Finds groups that lost messages, that nobody serves, or that were not made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bus.client import Bus
from bus.doctor.finding import Finding, some
from bus.observe import GroupSnapshot, Survey
from bus.observe.loss import loss_words
from bus.upkeep import newcomers

_LEAVE = "Leave removing to retention: no XTRIM, XDEL, or MAXLEN by other programs."


def examine(bus: Bus, survey: Survey) -> Iterator[Finding]:
    """Yield one finding for each kind of trouble; nothing if there is none."""
    yield from _lost(survey.groups)
    yield from _unserved(survey.groups)
    yield from _refused(bus, survey)


def _lost(groups: Sequence[GroupSnapshot]) -> Iterator[Finding]:
    told = [_losses(group) for group in groups if group.lost or group.lost_maybe]
    if told:
        text = f"Messages were removed from Redis before they were given: {some(told)}."
        lately = any(group.lost_lately for group in groups)
        hint = f"`bus group describe` says it for each partition. {_LEAVE}"
        yield Finding("error" if lately else "warning", "lost", text, hint)
    gone = [f"{group.name} of {group.topic}: {group.trimmed:,}" for group in groups if group.trimmed]
    if gone:
        text = f"Messages were removed from Redis when they were given and not settled: {some(gone)}."
        yield Finding("warning", "lost", text, _LEAVE)


def _unserved(groups: Sequence[GroupSnapshot]) -> Iterator[Finding]:
    unserved = [group for group in groups if not group.workers]
    waiting = [group for group in unserved if (group.lag and group.lag.count) or group.pending]
    if waiting:
        told = [f"{group.name} of {group.topic} ({_waiting(group)})" for group in waiting]
        hint = (
            "Start a worker that serves them. Where the handler is gone or has another group now, "
            "`bus group delete TOPIC GROUP`: until then their messages are kept for them."
        )
        yield Finding(
            "warning", "unserved", f"Groups with messages that no worker serves: {some(told)}.", hint
        )


def _waiting(group: GroupSnapshot) -> str:
    parts = []
    if group.lag and group.lag.count:
        parts.append(f"lag {group.lag.words}")
    if group.pending:
        parts.append(f"{group.pending:,} pending")
    return ", ".join(parts)


def _refused(bus: Bus, survey: Survey) -> Iterator[Finding]:
    made = {(spec.topic, spec.name) for spec in survey.declared.groups}
    for record in survey.unreadable:
        if record.key == bus.keys.groups:
            topic, _, group = record.field.partition("/")
            made.add((topic, group))
    refusals = newcomers.refusals(bus, made)
    told = [f"{refusal.group} on {refusal.topic} ({refusal.messages:,} messages)" for refusal in refusals]
    if told:
        text = f"New groups that were not made, because of BUS['NEW_GROUP_LIMIT']: {some(told)}."
        hint = (
            "`bus group create TOPIC GROUP --start earliest` (or latest) makes them, and their workers begin."
        )
        yield Finding("warning", "refused", text, hint)


def _losses(group: GroupSnapshot) -> str:
    lost, maybe, last = group.lost or 0, group.lost_maybe or 0, group.lost_last
    place = f" (last in partition {group.lost_last_partition}: {last.told})" if last else ""
    return f"{group.name} of {group.topic}: {loss_words(lost, maybe)}{place}"
