"""Declares the groups that one worker serves, where they are missing, and puts them at their marks."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections

from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.errors import BusError, BusFull, ForeignData, UnknownTopic, is_away
from bus.safety.complaints import Complaints
from bus.topics.registry import GroupSpec, Tables
from bus.transactions import marks
from bus.upkeep.newcomers import Newcomers
from workers.fork_guard import fork_guard
from workers.membership.homes import Homes

logger = logging.getLogger("jitney.workers")

#: The pause after partitions or groups could not be made. Seconds.
DECLARE_SECONDS = 30.0


class ServedGroups:
    """The groups of one worker's subscriptions.

    For the thread that keeps its leases. Raises BusUnavailable.
    """

    def __init__(
        self,
        bus: Bus,
        subscriptions: Iterable[Subscription],
        homes: Homes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._subscriptions = list(subscriptions)
        self._homes = homes
        self._clock = clock
        self._complaints = Complaints(logger, clock=clock)
        self._newcomers = Newcomers(bus)
        self._declared = self._declared_once = False
        self._declare_at = -math.inf
        self.names = {(served.topic, served.group) for served in self._subscriptions}
        """(topic, group) of each."""

    def declare_again(self) -> None:
        """Declare them all at the next call of `tables`: streams or groups are gone. From any thread."""
        self._declared = False

    def tables(self) -> Tables:
        """Return what all workers have declared, with our own groups, made again if they are missing."""
        tables = self._homes.tables()
        subscriptions = self._of_known_topics(tables)
        # Missing after FLUSHALL, or because somebody deleted a group that is still subscribed.
        names = [(served.topic, served.group) for served in subscriptions]
        missing = not self._declared or self._newcomers.must_declare(names, tables.group_names)
        if missing and self._clock() >= self._declare_at:
            if not self._try_to_declare(subscriptions):
                self._declare_at = self._clock() + DECLARE_SECONDS
            self._homes.forget()
            before, tables = tables, self._homes.tables()
            if tables is not before:
                self._bus.registry.hint("spec changed")  # or others would divide what was there before
        return tables

    def _of_known_topics(self, tables: Tables) -> list[Subscription]:
        """Return the subscriptions whose topics exist."""
        subscriptions = []
        for served in self._subscriptions:
            if served.topic in tables.topics:
                subscriptions.append(served)
                continue
            try:  # makes it again, where code or a database declares it
                self._bus.registry.spec(served.topic)
            except (UnknownTopic, ForeignData) as error:
                if not self._declared:
                    logger.warning("%s waits for its topic: %s", served.handler_name, error)
            else:
                subscriptions.append(served)
        return subscriptions

    def _try_to_declare(self, subscriptions: list[Subscription]) -> bool:
        """Declare these groups as far as possible, and tell of what is in the way. The look goes on all the
        same: the lanes of the groups that are there have nothing to do with it. Return False if there is no
        hope that trying again soon helps.
        """
        try:
            return self._declare(subscriptions)
        except BusError as error:
            if is_away(error):
                raise
            self._complaints.say("declare", "Groups of this worker cannot be declared now: %s", error)
            # What is full may have room at the next look; access rules change when people change them.
            return isinstance(error, BusFull)

    def _declare(self, subscriptions: list[Subscription]) -> bool:
        """Declare the groups of these subscriptions; return True if all went well."""
        well = self._newcomers.declare(
            (
                GroupSpec(topic=served.topic, name=served.group, ordering=served.ordering, start=served.start)
                for served in subscriptions
            ),
            # Of workers with different code the one that started last decides, not that repaired last.
            keep_ordering=self._declared_once,
        )
        self._declared = self._declared_once = True
        self._advance()
        return well

    def _advance(self) -> None:
        """Move groups forward to their copied marks: they were made again, or the server's data are older."""
        try:
            with fork_guard.work():
                settled = marks.advance(self._bus)
            if settled:
                logger.warning(
                    "Redis came back with older data: %s settled messages are passed over.", settled
                )
        except (Error, ImproperlyConfigured) as error:
            self._complaints.say(
                "marks",
                "The copies of the marks cannot be read, so none is used: %s. Did `manage.py migrate` run?",
                error,
            )
        finally:
            connections.close_all()  # this thread may not need it again for weeks
