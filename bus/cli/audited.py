"""Operator verbs in a Django project: through the database, with an audit record each."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from django.core.exceptions import ValidationError
from django.db import DatabaseError

from bus.client import Bus
from bus.databases import Databases
from bus.errors import ConfigurationError
from bus.format.records import Look
from bus.models import OutboxRow, Topic
from bus.operating import declarations, operate
from bus.operating.deadletters import Selection
from bus.operating.declarations import Drift, SyncReport
from bus.operating.delayed import Cancelled, DelayedRef
from bus.operating.fates import Tally
from bus.operating.positions import Plan
from bus.terminal.output import remark
from bus.values import Ordering

_Answer = TypeVar("_Answer")


class Audited:
    """The verbs of `manage.py bus`: they act on Redis and database, and write the audit."""

    remark = ""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._actor = operate.Actor("cli", _user())

    def create_topic(self, name: str, partitions: int, retention: timedelta | None, notes: str) -> None:
        with _plain_errors():
            operate.create_topic(
                self._bus, name, partitions=partitions, retention=retention, notes=notes, actor=self._actor
            )

    def change_topic(self, name: str, changes: dict[str, Any]) -> None:
        with _plain_errors():
            operate.change_topic(self._bus, name, **changes, actor=self._actor)

    def check_change(self, name: str, changes: dict[str, Any]) -> None:
        with _plain_errors():
            operate.check_change_topic(self._bus, name, **changes)

    def delete_topic(self, name: str, confirm: str) -> None:
        operate.delete_topic(self._bus, name, confirm=confirm, actor=self._actor)

    def check_deletable(self, name: str, confirm: str) -> None:
        operate.check_deletable(self._bus, name, confirm)

    def facts(self, name: str, /) -> dict[str, str]:
        return _look(lambda: _facts(name), {})

    def sync(self) -> SyncReport:
        return declarations.sync(self._bus)

    def drift(self, look: Look, /) -> list[Drift]:
        return _look(lambda: declarations.drift(self._bus, look), [])

    def create_group(self, topic: str, group: str, start: str, ordering: Ordering) -> None:
        operate.create_group(self._bus, topic, group, start=start, ordering=ordering, actor=self._actor)

    def outboxes(self) -> list[str]:
        return Databases(OutboxRow).aliases()

    def pause_group(self, topic: str, group: str) -> None:
        operate.pause_group(self._bus, topic, group, actor=self._actor)

    def resume_group(self, topic: str, group: str) -> None:
        operate.resume_group(self._bus, topic, group, actor=self._actor)

    def delete_group(self, topic: str, group: str) -> None:
        operate.delete_group(self._bus, topic, group, actor=self._actor)

    def reset_group(self, plan: Plan, basis: str | None) -> Plan:
        return operate.reset_group(self._bus, plan, basis=basis, actor=self._actor)

    def retry_dead(self, topic: str, group: str, selection: Selection, tell: Callable[[int], None]) -> Tally:
        return operate.retry_dead_letters(self._bus, topic, group, selection, actor=self._actor, tell=tell)

    def discard_dead(
        self, topic: str, group: str, selection: Selection, tell: Callable[[int], None]
    ) -> Tally:
        return operate.discard_dead_letters(self._bus, topic, group, selection, actor=self._actor, tell=tell)

    def cancel_delayed(
        self, topic: str, refs: Iterable[DelayedRef], tell: Callable[[int], None]
    ) -> Cancelled:
        return operate.cancel_delayed(self._bus, topic, refs, actor=self._actor, tell=tell)


def _look(question: Callable[[], _Answer], otherwise: _Answer) -> _Answer:
    """Ask the database; where it cannot answer, say so: what Redis has is shown all the same."""
    try:
        return question()
    except DatabaseError as error:
        remark(f"The database cannot be asked: {error}. Did `manage.py migrate` run?")
        return otherwise


def _facts(name: str) -> dict[str, str]:
    row = Topic.objects.filter(name=name).first()
    return {"origin": row.get_origin_display(), "notes": row.notes} if row else {}


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise ConfigurationError(" ".join(error.messages)) from error


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        return None
