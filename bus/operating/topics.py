"""The operator's verbs on topics: each changes the row, then Redis, and is audited."""

from __future__ import annotations

from datetime import timedelta
from enum import Enum
from typing import Any

from django.db import transaction

from bus.client import Bus
from bus.errors import ConfigurationError, UnknownTopic
from bus.models import Topic
from bus.operating.audit import Actor, after_commit, audited
from bus.safety.verbs import check_writable


class Keep(Enum):
    """Marks a setting of a topic that stays as it is; None would mean "for ever"."""

    KEEP = "keep"


KEEP = Keep.KEEP


def create_topic(
    bus: Bus,
    name: str,
    *,
    partitions: int = 1,
    retention: timedelta | None = None,
    notes: str = "",
    actor: Actor,
) -> Topic:
    """Store a new topic and, after the commit, project it to Redis; return its row.

    Raises what save_topic does.
    """
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

    Raises UnknownTopic if the database does not have it, and what save_topic raises.
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
    """Raise what change_topic would raise now. Nothing is done, and no record left."""
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
    with audited(bus, actor, verb, topic.name, detail=_change(topic)) as record:
        topic.full_clean()
        bus.registry.check_projectable([topic.spec])  # better found out before the commit
        with transaction.atomic():
            topic.save()
            record.save()
            after_commit(record, lambda: bus.registry.project([topic.spec]))
    return topic


def delete_topic(bus: Bus, name: str, *, confirm: str | None, actor: Actor) -> None:
    """Delete a topic with all its messages and groups, from the database and, after the commit, from Redis.

    `confirm` must be its name once more. Raises ConfigurationError (not confirmed, or code declares it),
    UnknownTopic, ReadOnly or BusUnavailable, and then nothing was done. If Redis goes away at the commit,
    BusError is raised after it, and the same call again removes what Redis still has.
    """
    with audited(bus, actor, "delete topic", name) as record:
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
                after_commit(record, lambda: bus.registry.delete(name))


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


def _change(topic: Topic) -> dict[str, Any]:
    """Return, for the audit, a new topic's settings, or a changed topic's changes as [before, after]."""
    after = _settings(topic)
    before = Topic.objects.filter(pk=topic.pk).first() if topic.pk else None
    if before is None:
        return after
    return {name: [old, after[name]] for name, old in _settings(before).items() if old != after[name]}


def _settings(topic: Topic) -> dict[str, Any]:
    retention = topic.retention.total_seconds() if topic.retention is not None else None
    return {"partitions": topic.partitions, "retention": retention, "notes": topic.notes}
