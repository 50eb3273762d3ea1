"""Audits the verbs of operators: each is done inside a record of who did what, also when it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from django.core.exceptions import ValidationError
from django.db import transaction

from bus.client import Bus
from bus.errors import BusError
from bus.models import AuditRecord
from bus.safety.verbs import check_writable


@dataclass(frozen=True, slots=True)
class Actor:
    """The person who does a verb, and from where."""

    source: Literal["admin", "cli"]
    who: str | None = None


@contextmanager
def audited(
    bus: Bus, actor: Actor, verb: str, topic: str = "", group: str = "", detail: dict[str, Any] | None = None
) -> Iterator[AuditRecord]:
    """Leave the record of the verb that is done inside.

    Raises ReadOnly first, where BUS["READ_ONLY"] is set.
    """
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


def after_commit(record: AuditRecord, work: Callable[[], object]) -> None:
    """Do what Redis needs once the database has committed.

    A failure is written into the record, and raised.
    """

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
