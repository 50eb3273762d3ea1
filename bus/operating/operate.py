"""The operator's verbs, for the admin and the command line alike: each is checked, done and audited.

Every function takes the bus first and the `actor` by keyword, refuses with ReadOnly where
BUS["READ_ONLY"] is set, and leaves one AuditRecord, also when it fails. (If the caller rolls back a
transaction around it, the record goes with that.) The verbs on topics stand in `bus.operating.topics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bus.client import Bus
from bus.models import AuditRecord
from bus.operating import audit, deadletters, delayed, fates, groups, positions
from bus.operating.audit import Actor
from bus.operating.deadletters import Selection
from bus.operating.delayed import Cancelled, DelayedRef
from bus.operating.fates import Fate, LetterRef, Tally
from bus.operating.positions import Move, Plan
from bus.operating.topics import (
    KEEP,
    change_topic,
    check_change_topic,
    check_deletable,
    create_topic,
    delete_topic,
    save_topic,
)
from bus.values import Ordering

__all__ = [
    "KEEP", "Actor", "cancel_delayed", "change_topic", "check_change_topic", "check_deletable",
    "create_group", "create_topic", "delete_group", "delete_topic", "discard_dead_letters", "pause_group",
    "reset_group", "resume_group", "retry_dead_letters", "save_topic",
]  # fmt: skip


# ---------------------------------------------------------------------- groups


def create_group(
    bus: Bus, topic: str, group: str, *, start: str = "earliest", ordering: Ordering = "key", actor: Actor
) -> None:
    """Create a group on a topic, as groups.create."""
    detail = {"start": start, "ordering": ordering}
    with audit.audited(bus, actor, "create group", topic, group, detail):
        groups.create(bus, topic, group, start=start, ordering=ordering)


def pause_group(bus: Bus, topic: str, group: str, *, actor: Actor) -> None:
    """Stop giving messages to a group, as groups.pause."""
    with audit.audited(bus, actor, "pause group", topic, group):
        groups.pause(bus, topic, group)


def resume_group(bus: Bus, topic: str, group: str, *, actor: Actor) -> None:
    """Give messages to a paused group again, as groups.resume."""
    with audit.audited(bus, actor, "resume group", topic, group):
        groups.resume(bus, topic, group)


def delete_group(bus: Bus, topic: str, group: str, *, actor: Actor) -> None:
    """Delete a group with its position, pending list and dead letters, as groups.delete."""
    with audit.audited(bus, actor, "delete group", topic, group):
        groups.delete(bus, topic, group)


def reset_group(bus: Bus, plan: Plan, *, basis: str | None = None, actor: Actor) -> Plan:
    """Move a group to where a plan says; see positions.reset. The record keeps each move, as it was done."""
    detail: dict[str, Any] = {"target": plan.target.text, "partitions": list(map(_moved, plan.moves))}
    with audit.audited(bus, actor, "reset group", plan.topic, plan.group, detail) as record:
        done = positions.reset(bus, plan, basis=basis)
        record.detail["partitions"] = list(map(_moved, done.moves))
    return done


def _moved(move: Move) -> dict[str, Any]:
    return {
        "partition": move.partition,
        "before": [move.before.offset, move.before.id],
        "after": [move.after.offset, move.after.id],
        "replayed": move.replayed,
        "skipped": move.skipped,
        "pending": move.pending,
    }


# ---------------------------------------------------------------------- dead letters

#: Characters of a reason that the audit keeps for each letter.
_AUDITED_REASON = 200


def retry_dead_letters(
    bus: Bus,
    topic: str,
    group: str,
    selection: Selection,
    *,
    actor: Actor,
    tell: Callable[[int], None] | None = None,
) -> Tally:
    """Give the selected dead letters back to their group alone, as fates.retry.

    Messages that die from now on are left out. `tell` is called with how many letters are dealt with so far.
    Each LETTERS_A_RECORD letters have a record of their own. Raises what deadletters.find and fates.retry
    raise; what was done by then stays done.
    """
    return _deal(bus, topic, group, selection, "retry dead letters", fates.retry, actor, tell)


def discard_dead_letters(
    bus: Bus,
    topic: str,
    group: str,
    selection: Selection,
    *,
    actor: Actor,
    tell: Callable[[int], None] | None = None,
) -> Tally:
    """Remove the selected dead letters for good. The record keeps their ids and reasons, not their values.

    In all else it is as retry_dead_letters.
    """
    return _deal(bus, topic, group, selection, "discard dead letters", fates.discard, actor, tell)


def _deal(
    bus: Bus,
    topic: str,
    group: str,
    selection: Selection,
    verb: str,
    work: Callable[[Bus, str, str, Sequence[LetterRef]], list[Fate]],
    actor: Actor,
    tell: Callable[[int], None] | None,
) -> Tally:
    tally = Tally()

    def deal(batch: Sequence[LetterRef], record: AuditRecord) -> None:
        record.detail = {"letters": [_line(letter, None) for letter in batch]}
        fates = work(bus, topic, group, batch)
        tally.add_all(fates)
        record.detail["letters"] = [_line(*pair) for pair in zip(batch, fates, strict=True)]
        if tell is not None:
            tell(tally.total)

    with audit.audited(bus, actor, verb, topic, group) as record:
        batches = fates.batches(deadletters.find(bus, topic, group, deadletters.bounded(bus, selection)))
        deal(next(batches, []), record)
    for batch in batches:
        with audit.audited(bus, actor, verb, topic, group) as record:
            deal(batch, record)
    return tally.with_missing(selection)


def _line(letter: LetterRef, fate: Fate | None) -> dict[str, str]:
    """Return what the audit keeps of one letter."""
    outcome = fate.name.lower() if fate is not None else "unknown"
    return {
        "letter": str(letter.place),
        "message": letter.message_id,
        "reason": letter.reason[:_AUDITED_REASON],
        "outcome": outcome,
    }


# ---------------------------------------------------------------------- delayed messages


def cancel_delayed(
    bus: Bus,
    topic: str,
    refs: Iterable[DelayedRef],
    *,
    actor: Actor,
    tell: Callable[[int], None] | None = None,
) -> Cancelled:
    """Remove messages that wait until they are due. The records keep their ids, not their values.

    `tell` is called with how many are dealt with so far. Each delayed.REFS_A_RECORD messages have a record of
    their own. Raises what delayed.cancel raises; what was cancelled by then stays so.
    """
    tally = Cancelled()

    def cancel(batch: Sequence[DelayedRef], record: AuditRecord) -> None:
        record.detail = {"messages": [{"message": str(ref), "outcome": "unknown"} for ref in batch]}
        removed = delayed.cancel(bus, topic, batch)
        for line, was_there in zip(record.detail["messages"], removed, strict=True):
            line["outcome"] = "cancelled" if was_there else "gone"
        tally.add(removed)
        if tell is not None:
            tell(tally.total)

    batches = delayed.batches(refs)
    with audit.audited(bus, actor, "cancel delayed", topic) as record:
        cancel(next(batches, []), record)
    for batch in batches:
        with audit.audited(bus, actor, "cancel delayed", topic) as record:
            cancel(batch, record)
    return tally
