"""The table of handlers: which function handles which topic for which group. `@subscribe` fills it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bus.consuming.handlers.redefinition import Origin, is_redefined, origin, same_name
from bus.consuming.handlers.running import check_runs, is_lazy, kind_of, name_of
from bus.errors import ConfigurationError
from bus.values import ORDERINGS, Ordering, Position, RetryPolicy, check_name, check_new_name

Handler = Callable[[Any], Any]

#: More messages than this in one batch would be settled too rarely (see workers.slices.handling).
MAX_BATCH = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One handler for one group of one topic."""

    topic: str
    group: str
    handler: Handler
    ordering: Ordering = "key"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    batch: int | None = None
    """The most messages in one call of a batch handler; None: one message a call."""
    atomic: str | None = None
    """Alias of the database in whose transaction the handler runs (see bus.transactions.inbox); None:
    without.
    """
    start: str = "earliest"
    time_limit: float | None = None
    """Seconds after which the process that still runs the handler is killed."""
    soft_time_limit: float | None = None
    """Seconds after which SoftTimeLimitExceeded is raised inside the handler."""
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    dead_on: tuple[type[BaseException], ...] = ()

    @property
    def handler_name(self) -> str:
        return name_of(self.handler)


class Subscriptions:
    """The table of handlers of one process: at most one for a topic and group."""

    def __init__(self) -> None:
        self._table: dict[tuple[str, str], Subscription] = {}
        self._origins: dict[tuple[str, str], Origin] = {}
        self._lock = threading.Lock()

    def add(self, subscription: Subscription) -> None:
        """Check a subscription and enter it. Raises ConfigurationError.

        A module that is loaded again replaces its handlers.
        """
        _check(subscription)
        place, made_in = (subscription.topic, subscription.group), origin()
        with self._lock:
            present = self._table.get(place)
            if present is not None:
                self._refuse_another(present, subscription, self._origins[place], made_in)
            self._table[place], self._origins[place] = subscription, made_in

    @staticmethod
    def _refuse_another(known: Subscription, new: Subscription, known_in: Origin, made_in: Origin) -> None:
        if known.handler is new.handler:
            return
        taken = f"Group {new.group!r} of topic {new.topic!r} already has the handler {known.handler_name}"
        if not same_name(known.handler, new.handler):
            raise ConfigurationError(f"{taken}; {new.handler_name} needs a group of its own.")
        if not is_redefined(known.handler, known_in, new.handler, made_in):
            raise ConfigurationError(
                f"{taken}{_by(known_in)}; another function of the same name{_by(made_in)} needs a group of "
                "its own. If a decorator hides their names, have it use functools.wraps."
            )

    def get(self, topic: str, group: str) -> Subscription | None:
        return self._table.get((topic, group))

    def __iter__(self) -> Iterator[Subscription]:
        return iter(sorted(self._table.values(), key=lambda item: (item.topic, item.group)))

    def __len__(self) -> int:
        return len(self._table)

    def clear(self) -> None:
        self._table.clear()
        self._origins.clear()


def _by(origin: Origin) -> str:
    return f" (subscribed by {origin.module})" if origin.is_known else ""


def _check(subscription: Subscription) -> None:
    where = f"subscribe({subscription.topic!r}, group={subscription.group!r})"
    check_name("Topic", subscription.topic)
    check_new_name("Group", subscription.group)
    if subscription.ordering not in ORDERINGS:
        raise ConfigurationError(
            f"{where}: ordering must be one of {', '.join(ORDERINGS)}, not {subscription.ordering!r}."
        )
    batch = subscription.batch
    whole = isinstance(batch, int) and not isinstance(batch, bool)
    if batch is not None and not (whole and 1 <= batch <= MAX_BATCH):
        raise ConfigurationError(f"{where}: batch must be from 1 to {MAX_BATCH:,}, not {batch!r}.")
    if not isinstance(subscription.retry, RetryPolicy):
        raise ConfigurationError(f"{where}: retry must be a bus.RetryPolicy, not {subscription.retry!r}.")
    for name in ("time_limit", "soft_time_limit"):
        seconds = getattr(subscription, name)
        if seconds is not None and not (isinstance(seconds, int | float) and seconds > 0):
            raise ConfigurationError(f"{where}: {name} must be more than 0 seconds, not {seconds!r}.")
    if not callable(subscription.handler):
        raise ConfigurationError(f"{where}: {subscription.handler!r} is not callable.")
    if subscription.atomic is not None and not isinstance(subscription.atomic, str):
        raise ConfigurationError(
            f"{where}: atomic must be True or the alias of a database, not {subscription.atomic!r}."
        )
    Position.parse(subscription.start)
    if is_lazy(subscription.handler):
        return  # a worker looks at it, when there is an app (see workers.consumer)
    check_runs(subscription.handler, where)
    if subscription.atomic and kind_of(subscription.handler) == "coroutine":
        raise ConfigurationError(
            f"{where}: an async handler cannot be atomic: a transaction of Django belongs to one thread, and "
            "what a coroutine does after an await may run outside of it. Write `def`, not `async def`."
        )
