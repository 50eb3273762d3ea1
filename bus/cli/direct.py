"""Operator verbs without Django: on Redis alone, with no database and no audit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import click

from bus.errors import ConfigurationError
from bus.operating import deadletters, delayed, fates, groups, positions
from bus.operating.deadletters import Selection
from bus.operating.delayed import Cancelled, DelayedRef
from bus.operating.fates import Fate, LetterRef, Tally
from bus.safety.verbs import check_writable
from bus.values import Ordering, TopicSpec, check_new_name

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.format.records import Look
    from bus.operating.declarations import Drift, SyncReport
    from bus.operating.positions import Plan


class Direct:
    """The verbs of `jitney`: they act on Redis alone, without Django and without audit."""

    remark = (
        "It is in Redis only: no database knows it, so `topic sync` cannot bring it back if Redis loses it. "
        "Declare it in code, or use `manage.py bus topic`, to keep it."
    )

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def create_topic(self, name: str, partitions: int, retention: timedelta | None, notes: str) -> None:
        check_writable(self._bus, "create topic")
        if notes:
            _needs_database("--notes")
        check_new_name("Topic", name)
        if name in self._bus.registry.specs():
            raise ConfigurationError(f"There is a topic {name!r} already.")
        self._bus.registry.project([TopicSpec(name=name, partitions=partitions, retention=retention)])

    def change_topic(self, name: str, changes: dict[str, Any]) -> None:
        self._bus.registry.project([self._changed(name, changes)])

    def check_change(self, name: str, changes: dict[str, Any]) -> None:
        self._bus.registry.check_projectable([self._changed(name, changes)])

    def _changed(self, name: str, changes: dict[str, Any]) -> TopicSpec:
        check_writable(self._bus, "change topic")
        if "notes" in changes:
            _needs_database("--notes")
        return replace(self._bus.registry.stored(name), **changes)

    def delete_topic(self, name: str, confirm: str) -> None:
        check_writable(self._bus, "delete topic")
        self.check_deletable(name, confirm)
        self._bus.registry.delete(name)

    def check_deletable(self, name: str, confirm: str) -> None:
        if confirm != name:
            raise ConfigurationError(f"The topic is named {name!r}, not {confirm!r}: nothing was deleted.")

    def facts(self, _name: str, /) -> dict[str, str]:
        return {}

    def sync(self) -> SyncReport:
        _needs_database("`topic sync`")

    def drift(self, _look: Look, /) -> list[Drift]:
        return []

    def create_group(self, topic: str, group: str, start: str, ordering: Ordering) -> None:
        groups.create(self._bus, topic, group, start=start, ordering=ordering)

    def pause_group(self, topic: str, group: str) -> None:
        groups.pause(self._bus, topic, group)

    def resume_group(self, topic: str, group: str) -> None:
        groups.resume(self._bus, topic, group)

    def delete_group(self, topic: str, group: str) -> None:
        groups.delete(self._bus, topic, group)

    def reset_group(self, plan: Plan, basis: str | None) -> Plan:
        return positions.reset(self._bus, plan, basis=basis)

    def retry_dead(self, topic: str, group: str, selection: Selection, tell: Callable[[int], None]) -> Tally:
        return self._deal(topic, group, selection, fates.retry, tell)

    def discard_dead(
        self, topic: str, group: str, selection: Selection, tell: Callable[[int], None]
    ) -> Tally:
        return self._deal(topic, group, selection, fates.discard, tell)

    def cancel_delayed(
        self, topic: str, refs: Iterable[DelayedRef], tell: Callable[[int], None]
    ) -> Cancelled:
        check_writable(self._bus, "cancel delayed")
        tally = Cancelled()
        for batch in delayed.batches(refs):
            tally.add(delayed.cancel(self._bus, topic, batch))
            tell(tally.total)
        return tally

    def outboxes(self) -> list[str]:
        _needs_database("The outbox")

    def _deal(
        self,
        topic: str,
        group: str,
        selection: Selection,
        work: Callable[[Bus, str, str, Sequence[LetterRef]], list[Fate]],
        tell: Callable[[int], None],
    ) -> Tally:
        check_writable(self._bus, "retry or discard dead letters")
        tally = Tally()
        letters = deadletters.find(self._bus, topic, group, deadletters.bounded(self._bus, selection))
        for batch in fates.batches(letters):
            tally.add_all(work(self._bus, topic, group, batch))
            tell(tally.total)
        return tally.with_missing(selection)


def _needs_database(what: str) -> NoReturn:
    raise click.UsageError(f"{what} needs the project's database: use `manage.py bus` for it.")
