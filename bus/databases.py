"""Finds the databases that have one of Jitney's tables, and reads times and distinct values from tables."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections, models, router
from django.utils import timezone

from bus.safety.complaints import Complaints

complaints = Complaints(logging.getLogger("bus.databases"))

#: How often a database without the table is looked at again: it may be migrated. Seconds.
LOOK_SECONDS = 60.0


def is_configured(alias: str) -> bool:
    """Return whether the settings name a database there. Where they name none Django has a dummy, which can
    be asked nothing, under the alias "default".
    """
    return bool(connections.settings[alias]["ENGINE"] != "django.db.backends.dummy")


class Databases:
    """Finds the databases that have the table of a model, and remembers them."""

    def __init__(self, model: type[models.Model], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._clock = clock
        self._having: set[str] = set()
        self._look_at: dict[str, float] = {}

    def aliases(self) -> list[str]:
        """Return their aliases, in the order of the settings. A database that has the table is asked once."""
        return [alias for alias in connections if alias in self._having or self._look(alias)]

    def _look(self, alias: str) -> bool:
        if self._clock() < self._look_at.get(alias, 0.0):
            return False
        self._look_at[alias] = self._clock() + LOOK_SECONDS
        if not is_configured(alias) or not router.allow_migrate_model(alias, self._model):
            return False
        try:
            tables = connections[alias].introspection.table_names()
        except (Error, ImproperlyConfigured) as error:
            self._look_at[alias] = self._clock() + LOOK_SECONDS / 10
            complaints.say(alias, "Database %r cannot be asked for its tables: %s", alias, error)
            return False
        complaints.over(alias)
        if self._model._meta.db_table in tables:
            self._having.add(alias)
        return alias in self._having


def aware(moment: datetime | None) -> datetime | None:
    """Return a moment from a database with its time zone: TIME_ZONE if it has none (USE_TZ=False)."""
    return timezone.make_aware(moment) if moment is not None and timezone.is_naive(moment) else moment


def distinct(rows: models.QuerySet[Any], *names: str) -> Iterator[tuple[Any, ...]]:
    """Yield the distinct values of these columns, in order, by one index seek for each value, not a scan.

    The columns must stand in this order in an index, after those that `rows` is filtered by.
    """
    name, *rest = names
    after = rows
    while (value := after.order_by(name).values_list(name, flat=True).first()) is not None:
        if rest:
            for below in distinct(rows.filter(**{name: value}), *rest):
                yield (value, *below)
        else:
            yield (value,)
        after = rows.filter(**{f"{name}__gt": value})
