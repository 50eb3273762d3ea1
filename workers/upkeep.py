"""Calls the functions of `bus` that are due, in the first live worker in sort order.

Two at once do no harm: each step is one script per partition.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from django.db import Error, close_old_connections, connections

from bus import inbox, marks, outbox, retention
from bus.client import Bus
from bus.databases import Databases
from bus.errors import BusError

logger = logging.getLogger("jitney.workers")

#: What is wrong is said at once, then so often. Seconds.
COMPLAIN_SECONDS = 60.0
#: How often topics are trimmed. Seconds.
TRIM_SECONDS = 30.0
#: How often the outbox is looked at. Seconds.
RELAY_SECONDS = 0.5
#: How long the relay may go on before the other steps have their turn. Seconds.
RELAY_BURST_SECONDS = 5.0


class Upkeep(threading.Thread):
    """The housekeeping thread of one worker."""

    def __init__(self, bus: Bus, *, is_leader: Callable[[], bool]) -> None:
        super().__init__(name="jitney-upkeep", daemon=True)
        self._bus = bus
        self._is_leader = is_leader
        self._stopping = threading.Event()
        self._quiet: dict[str, float] = {}
        """Step → until when the same complaint is not made again."""
        self._inboxes: Databases | None = None
        self._outboxes: Databases | None = None
        self._relays: dict[str, outbox.Relay] = {}
        self._every = {
            self._relay_outbox: RELAY_SECONDS,
            self._copy_marks: marks.COPY_SECONDS,
            self._delete_inbox_rows: marks.COPY_SECONDS,
            self._trim: TRIM_SECONDS,
        }
        self._due = dict.fromkeys(self._every, 0.0)

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        # What is seldom done is not done at once: a worker starts with other things to do.
        for step in self._every:
            self._due[step] = time.monotonic() + min(self._every[step], marks.COPY_SECONDS)
        while not self._stopping.wait(min(self._every.values())):
            for step, seconds in self._every.items():
                if self._is_leader() and time.monotonic() >= self._due[step]:
                    self._due[step] = time.monotonic() + seconds * 0.9
                    self._attempt(step)
        connections.close_all()

    def _attempt(self, step: Callable[[], None]) -> None:
        self._guard(step.__name__.strip("_"), step)

    def _guard(self, name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except (BusError, Error) as error:
            if time.monotonic() >= self._quiet.get(name, 0.0):
                self._quiet[name] = time.monotonic() + COMPLAIN_SECONDS
                logger.warning("Upkeep (%s) failed and is tried again: %s", name, error)
            close_old_connections()

    def _copy_marks(self) -> None:
        marks.copy(self._bus)

    def _relay_outbox(self) -> None:
        from bus.models import OutboxRow  # a worker imports this module before Django's apps are ready

        self._outboxes = self._outboxes or Databases(OutboxRow)
        for alias in self._outboxes.aliases():
            relay = self._relays.setdefault(alias, outbox.Relay(self._bus, alias))
            self._guard(f"relay_outbox of database {alias}", partial(self._relay_all, relay))

    def _relay_all(self, relay: outbox.Relay) -> None:
        ends = time.monotonic() + RELAY_BURST_SECONDS
        while relay.run(RELAY_BURST_SECONDS) and time.monotonic() < ends and not self._stopping.is_set():
            pass

    def _delete_inbox_rows(self) -> None:
        from bus.models import InboxRow  # as above

        self._inboxes = self._inboxes or Databases(InboxRow)
        for alias in self._inboxes.aliases():
            self._guard(f"delete_inbox_rows of database {alias}", partial(inbox.forget, self._bus, alias))

    def _trim(self) -> None:
        if trimmed := retention.trim_all(self._bus):
            logger.info("Trimmed %s settled messages that were older than their topic keeps.", trimmed)
