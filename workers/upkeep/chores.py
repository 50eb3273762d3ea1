"""Lists the chores of upkeep, functions of `bus`, each with how often it is done.

Those that people wait for have threads of their own: delayed messages must be moved also while a database
does not answer, and committed messages must go out also while a trimming takes long.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from django.db import Error, close_old_connections

from bus.client import Bus
from bus.databases import Databases
from bus.errors import BusError
from bus.transactions import forgetting, marks, outbox
from bus.upkeep import due, losses, retention
from workers.fork_guard import guarded
from workers.upkeep.threads import Step, Upkeep

logger = logging.getLogger("jitney.workers")

#: How often topics are trimmed. Seconds.
TRIM_SECONDS = 30.0
#: Partitions that are looked at for losses in a second, on average. Where there are many, each is seen less
#: often.
LOOKS_PER_SECOND = 5
#: How often all marks are copied, also those that have not changed. Seconds.
COPY_ALL_SECONDS = 300.0
#: How often the outbox is looked at. Seconds.
RELAY_SECONDS = 0.5
#: How long the relay may go on with one database; then come the others, and pool processes can be started.
#: Seconds.
RELAY_BURST_SECONDS = 1.0


class Chores:
    """The chores of one bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._mover = due.Mover(bus)
        self._copied: dict[marks.MarkRef, str] = {}
        self._copy_all_at = 0.0
        self._count_losses_at = 0.0
        self._inboxes: Databases | None = None
        self._outboxes: Databases | None = None
        self._relays: dict[str, outbox.Relay] = {}

    def threads(self, is_leader: Callable[[], bool]) -> list[Upkeep]:
        """Return the threads that do the chores, not started yet."""
        steps_by_thread = {
            "delayed": [Step(self.move_delayed, due.MOVE_SECONDS)],
            "outbox": [Step(guarded(self.relay_outbox), RELAY_SECONDS)],
            "upkeep": [
                Step(guarded(self.copy_marks), marks.COPY_SECONDS),
                Step(guarded(self.delete_inbox_rows), marks.COPY_SECONDS),
                Step(self.count_losses, TRIM_SECONDS),
                Step(self.trim, TRIM_SECONDS),
            ],
        }
        return [Upkeep(name, steps, is_leader=is_leader) for name, steps in steps_by_thread.items()]

    def move_delayed(self) -> None:
        self._mover.run()

    def relay_outbox(self) -> None:
        from bus.models import OutboxRow  # a worker imports this module before Django's apps are ready

        self._outboxes = self._outboxes or Databases(OutboxRow)
        _in_each(self._outboxes, self._relay)

    def _relay(self, alias: str) -> None:
        relay = self._relays.setdefault(alias, outbox.Relay(self._bus, alias))
        ends = time.monotonic() + RELAY_BURST_SECONDS
        while relay.run(RELAY_BURST_SECONDS) and time.monotonic() < ends:
            pass

    def copy_marks(self) -> None:
        if time.monotonic() >= self._copy_all_at:
            self._copied.clear()  # somebody may have changed the table meanwhile
            self._copy_all_at = time.monotonic() + COPY_ALL_SECONDS
        marks.copy(self._bus, self._copied)

    def delete_inbox_rows(self) -> None:
        from bus.models import InboxRow  # as above

        self._inboxes = self._inboxes or Databases(InboxRow)
        _in_each(self._inboxes, lambda alias: forgetting.forget(self._bus, alias))

    def count_losses(self) -> None:
        began = time.monotonic()
        if began < self._count_losses_at:
            return
        for loss in losses.look(self._bus):
            logger.log(logging.ERROR if loss.count else logging.WARNING, "%s.", loss)
        topics = self._bus.registry.tables().topics.values()
        self._count_losses_at = began + sum(spec.partitions for spec in topics) / LOOKS_PER_SECOND

    def trim(self) -> None:
        if trimmed := retention.trim_all(self._bus):
            logger.info("Trimmed %s settled messages that were older than their topic keeps.", trimmed)


def _in_each(databases: Databases, work: Callable[[str], object]) -> None:
    """Do a work in every database, also if another one fails; then raise the first error."""
    errors: list[BusError] = []
    for alias in databases.aliases():
        try:
            work(alias)
        except (BusError, Error) as error:
            failed = BusError(f"database {alias!r}: {error}")
            failed.__cause__ = error
            errors.append(failed)
            close_old_connections()
    if errors:
        raise errors[0]
