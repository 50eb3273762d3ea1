"""One run of the command line: the bus, the verbs that change it, and the form of the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import click

from bus.safety.verbs import check_writable
from bus.values import Ordering

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.format.records import Look
    from bus.operating.deadletters import Selection
    from bus.operating.declarations import Drift, SyncReport
    from bus.operating.delayed import Cancelled, DelayedRef
    from bus.operating.fates import Tally
    from bus.operating.positions import Plan


class Operator(Protocol):
    """The operator verbs. `audited` does them with the database, `direct` on Redis alone."""

    remark: str
    """What to tell after a topic was stored; empty if there is nothing to tell."""

    def create_topic(self, name: str, partitions: int, retention: timedelta | None, notes: str) -> None: ...
    def change_topic(self, name: str, changes: dict[str, Any]) -> None:
        """Change a topic. `changes`: some of partitions, retention (None: for ever) and notes."""

    def check_change(self, name: str, changes: dict[str, Any]) -> None:
        """Raise what change_topic would raise now."""

    def delete_topic(self, name: str, confirm: str) -> None: ...
    def check_deletable(self, name: str, confirm: str) -> None:
        """Raise ConfigurationError if this topic cannot be deleted, or is not confirmed."""

    def facts(self, name: str, /) -> dict[str, str]:
        """Return what is known of a topic beside Redis: where it comes from, its notes."""

    def sync(self) -> SyncReport: ...
    def drift(self, look: Look, /) -> list[Drift]:
        """Return how code, database and Redis differ; `look`: what Redis has."""

    def create_group(self, topic: str, group: str, start: str, ordering: Ordering) -> None: ...
    def pause_group(self, topic: str, group: str) -> None: ...
    def resume_group(self, topic: str, group: str) -> None: ...
    def delete_group(self, topic: str, group: str) -> None: ...
    def reset_group(self, plan: Plan, basis: str | None) -> Plan:
        """Do what a plan says; see positions.reset."""

    def retry_dead(self, topic: str, group: str, selection: Selection, tell: Callable[[int], None]) -> Tally:
        """Give dead letters back; `tell` is called with how many are dealt with so far."""

    def outboxes(self) -> list[str]:
        """Return the aliases of the databases that have an outbox."""

    def discard_dead(
        self, topic: str, group: str, selection: Selection, tell: Callable[[int], None]
    ) -> Tally: ...
    def cancel_delayed(
        self, topic: str, refs: Iterable[DelayedRef], tell: Callable[[int], None]
    ) -> Cancelled: ...


class Session:
    """One run of the command line. The bus is made when a command first needs it, so --help needs none."""

    def __init__(self, make_bus: Callable[[], Bus], make_operator: Callable[[Bus], Operator]) -> None:
        self._make_bus = make_bus
        self._make_operator = make_operator
        self.json = False

    @cached_property
    def bus(self) -> Bus:
        return self._make_bus()

    def check_writable(self, command: str) -> None:
        """Raise ReadOnly if the command line may only look."""
        check_writable(self.bus, command)

    @cached_property
    def operator(self) -> Operator:
        return self._make_operator(self.bus)


pass_session = click.make_pass_decorator(Session)
