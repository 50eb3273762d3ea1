"""What operators do, from the admin and the command line alike: each verb checked, done and audited.

Every function takes the bus first and the `actor` by keyword, refuses with ReadOnly where
BUS["READ_ONLY"] is set, and leaves one AuditRecord, also when it fails. (Inside a transaction of the
caller that is rolled back, the record goes with it.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Literal

from django.core.exceptions import ValidationError
from django.db import transaction

from bus.client import Bus
from bus.errors import BusError, ConfigurationError, UnknownTopic
from bus.models import AuditRecord, Topic
from bus.operating import deadletters, delayed, groups
from bus.operating.deadletters import Fate, LetterRef, Selection, Tally
from bus.operating.delayed import Cancelled, DelayedRef
from bus.safety.verbs import check_writable
from bus.values import Ordering


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does it, and from where."""

    source: Literal["admin", "cli"]
    who: str | None = None


class Keep(Enum):
    """Marks a setting of a topic that stays as it is; None would mean "for ever"."""

    KEEP = "keep"


KEEP = Keep.KEEP


# ---------------------------------------------------------------------- topics


def create_topic(
    bus: Bus,
    name: str,
    *,
    partitions: int = 1,
    retention: timedelta | None = None,
    notes: str = "",
    actor: Actor,
) -> Topic:
    """Store a new topic and, after the commit, project it to Redis; return its row. Raises as save_topic."""
    topic = Topic(name=name, partitions=partitions, retention=retention, notes=notes, origin=actor.source)
    return save_topic(bus, topic, actor=actor)


def change_topic(
    bus: Bus,
    name: str,
    *,
    partitions: int | Keep = KEEP,
    retention: timedelta | Keep | None = KEEP,
    notes: str | Keep = KEEP,
    actor: Actor,
) -> Topic:
    """Change what is given and, after the commit, project it to Redis; return the row.

    Raises UnknownTopic if the database does not have it, else as save_topic.
    """
    return save_topic(bus, _changed(name, partitions, retention, notes), actor=actor)


def check_change_topic(
    bus: Bus,
    name: str,
    *,
    partitions: int | Keep = KEEP,
    retention: timedelta | Keep | None = KEEP,
    notes: str | Keep = KEEP,
) -> None:
    """Raise what change_topic would raise now; do nothing, leave no record."""
    check_writable(bus, "change topic")
    topic = _changed(name, partitions, retention, notes)
    topic.full_clean()
    bus.registry.check_projectable([topic.spec])


def _changed(
    name: str, partitions: int | Keep, retention: timedelta | Keep | None, notes: str | Keep
) -> Topic:
    topic = Topic.objects.filter(name=name).first()
    if topic is None:
        raise UnknownTopic(name)
    for field, value in (("partitions", partitions), ("retention", retention), ("notes", notes)):
        if value is not KEEP:
            setattr(topic, field, value)
    return topic


def save_topic(bus: Bus, topic: Topic, *, actor: Actor) -> Topic:
    """Check and store a row, new or changed, and project it to Redis after the commit.

    Raises ValidationError (a rule of Topic.clean), ConfigurationError (Redis has more partitions, or a newer
    layout), ForeignData, ReadOnly or BusUnavailable, and then nothing was done. If Redis goes away between
    the check and the commit, BusError is raised *after* the commit (out of the outermost `atomic`): then the
    row is stored, and `bus topic sync` projects it.
    """
    verb = "change topic" if topic.pk else "create topic"
    with _audited(bus, actor, verb, topic.name, detail=_change(topic)) as record:
        topic.full_clean()
        bus.registry.check_projectable([topic.spec])  # better found out before the commit
        with transaction.atomic():
            topic.save()
            record.save()
            _after_commit(record, lambda: bus.registry.project([topic.spec]))
    return topic


def delete_topic(bus: Bus, name: str, *, confirm: str | None, actor: Actor) -> None:
    """Delete a topic with all its messages and groups, from the database and, after the commit, from Redis.

    `confirm` must be its name once more. Raises ConfigurationError (not confirmed, or code declares it),
    UnknownTopic, ReadOnly or BusUnavailable, and then nothing was done. If Redis goes away at the commit,
    BusError is raised after it, and the same call again removes what Redis still has.
    """
    with _audited(bus, actor, "delete topic", name) as record:
        check_deletable(bus, name, confirm)
        try:
            projected = bus.registry.stored(name)
        except UnknownTopic:
            projected = None
        rows = Topic.objects.filter(name=name)
        if projected is None and not rows.exists():
            raise UnknownTopic(name)
        with transaction.atomic():
            rows.delete()
            record.save()
            if projected is not None:
                _after_commit(record, lambda: bus.registry.delete(name))


def check_deletable(bus: Bus, name: str, confirm: str | None) -> None:
    """Raise ConfigurationError unless the name is confirmed and no code declares the topic."""
    if bus.declared.get(name) is not None:
        raise ConfigurationError(
            f"Topic {name!r} is declared in code, which would make it again. Remove the declaration first."
        )
    if confirm != name:
        given = f"{confirm!r} was given" if confirm else "none was given"
        raise ConfigurationError(
            f"Deleting topic {name!r} removes all its messages: confirm it with its name ({given})."
        )


# ---------------------------------------------------------------------- groups


def create_group(
    bus: Bus, topic: str, group: str, *, start: str = "earliest", ordering: Ordering = "key", actor: Actor
) -> None:
    """Create a group on a topic; see groups.create."""
    detail = {"start": start, "ordering": ordering}
    with _audited(bus, actor, "create group", topic, group, detail):
        groups.create(bus, topic, group, start=start, ordering=ordering)


def pause_group(bus: Bus, topic: str, group: str, *, actor: Actor) -> None:
    """Stop giving messages to a group; see groups.pause."""
    with _audited(bus, actor, "pause group", topic, group):
        groups.pause(bus, topic, group)


def resume_group(bus: Bus, topic: str, group: str, *, actor: Actor) -> None:
    """Give messages to a paused group again; see groups.resume."""
    with _audited(bus, actor, "resume group", topic, group):
        groups.resume(bus, topic, group)


def delete_group(bus: Bus, topic: str, group: str, *, actor: Actor) -> None:
    """Delete a group with its position, pending list and dead letters; see groups.delete."""
    with _audited(bus, actor, "delete group", topic, group):
        groups.delete(bus, topic, group)


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
    """Give the selected dead letters back to their group alone; see deadletters.retry.

    What dies from now on is left out. `tell` is called with how many are dealt with so far. Every
    BATCH letters leave a record of their own. Raises as deadletters.find and deadletters.retry; what
    was done by then stays done.
    """
    return _deal(bus, topic, group, selection, "retry dead letters", deadletters.retry, actor, tell)


def discard_dead_letters(
    bus: Bus,
    topic: str,
    group: str,
    selection: Selection,
    *,
    actor: Actor,
    tell: Callable[[int], None] | None = None,
) -> Tally:
    """Remove the selected dead letters for good; the record keeps their ids and reasons, not their values.

    Otherwise as retry_dead_letters.
    """
    return _deal(bus, topic, group, selection, "discard dead letters", deadletters.discard, actor, tell)


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

    with _audited(bus, actor, verb, topic, group) as record:
        batches = deadletters.batches(
            deadletters.find(bus, topic, group, deadletters.bounded(bus, selection))
        )
        deal(next(batches, []), record)
    for batch in batches:
        with _audited(bus, actor, verb, topic, group) as record:
            deal(batch, record)
    return tally.with_missing(selection)


def _line(letter: LetterRef, fate: Fate | None) -> dict[str, str]:
    """What the audit keeps of one letter."""
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
    """Remove messages that wait until they are due; the records keep their ids, not their values.

    `tell` is called with how many are dealt with so far. Every delayed.BATCH messages leave a record of
    their own. Raises as delayed.cancel; what was cancelled by then stays so.
    """
    tally = Cancelled()

    def cancel(batch: Sequence[DelayedRef], record: AuditRecord) -> None:
        record.detail = {"messages": [{"message": str(ref), "outcome": "unknown"} for ref in batch]}
        removed = delayed.cancel(bus, topic, batch)
        for line, there in zip(record.detail["messages"], removed, strict=True):
            line["outcome"] = "cancelled" if there else "gone"
        tally.add(removed)
        if tell is not None:
            tell(tally.total)

    batches = delayed.batches(refs)
    with _audited(bus, actor, "cancel delayed", topic) as record:
        cancel(next(batches, []), record)
    for batch in batches:
        with _audited(bus, actor, "cancel delayed", topic) as record:
            cancel(batch, record)
    return tally


# ---------------------------------------------------------------------- shared


@contextmanager
def _audited(
    bus: Bus, actor: Actor, verb: str, topic: str = "", group: str = "", detail: dict[str, Any] | None = None
) -> Iterator[AuditRecord]:
    """Do a verb inside, and leave its record."""
    record = AuditRecord(
        who=actor.who,
        source=actor.source,
        verb=verb,
        topic=topic[:100],
        group=group[:100],
        detail=detail or {},
    )
    try:
        check_writable(bus, verb)
        yield record
    except (BusError, ValidationError) as error:
        _save_failed(record, error)
        raise
    if record.pk is None:
        record.save()


def _after_commit(record: AuditRecord, work: Callable[[], object]) -> None:
    """Do what Redis needs once the database has committed; a failure turns the record and is raised."""

    def run() -> None:
        try:
            work()
        except BusError as error:
            _save_failed(record, error)
            raise

    transaction.on_commit(run)


def _save_failed(record: AuditRecord, error: BusError | ValidationError) -> None:
    text = " ".join(error.messages) if isinstance(error, ValidationError) else str(error)
    if record.error != text:
        record.fail(text)
        record.save()


def _change(topic: Topic) -> dict[str, Any]:
    """What the audit keeps: of a new topic its settings, of a changed one [before, after] of what changed."""
    after = _settings(topic)
    before = Topic.objects.filter(pk=topic.pk).first() if topic.pk else None
    if before is None:
        return after
    return {name: [old, after[name]] for name, old in _settings(before).items() if old != after[name]}


def _settings(topic: Topic) -> dict[str, Any]:
    retention = topic.retention.total_seconds() if topic.retention is not None else None
    return {"partitions": topic.partitions, "retention": retention, "notes": topic.notes}
