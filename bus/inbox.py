"""The inbox: a row for each message that a handler has handled, written in the handler's own transaction.

So the handler's effect in that database and the row that proves it are committed together or not at all,
and a message that comes again finds its row and is not handled again: once in effect, whatever dies when.

A row is known by group, topic, partition, id, and *era*: a token that is new whenever the ids of a
partition may stand for other messages than before, or the group is meant to handle them again. It is a
field of the group's state in Redis (see `ensure.lua`), and begins with the prefix of its bus.

`forget` deletes the rows that nothing can ask for any more:

- those up to the *copied* mark. After the server comes back with older data groups go on from the copies of
  their marks (see bus.marks); what was settled after the last copy is delivered again, and must find its row.
- but not those that are pending: there the handler has committed and the settle was lost, so the message
  will be delivered again. The pending list is read after the rows: a message with a row that is not pending
  *then* has been settled since.
- those of eras that are over, when their messages are a day old: if a Redis that came up empty is replaced
  by a backup, its eras are back.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

from django.db import IntegrityError, connections, transaction
from django.db.models import Q
from django.db.transaction import TransactionManagementError

from bus.databases import distinct
from bus.errors import ConfigurationError, ServerError
from bus.handlers import refuse_awaitable
from bus.marks import Place
from bus.streams.commands import is_nogroup, text
from bus.streams.connect import check
from bus.subscriptions import Handler, Subscription
from bus.values import Message, id_pair

if TYPE_CHECKING:
    from bus.client import Bus

#: Rows looked at, and pending ids read, at once.
PAGE = 500
#: How long one call of `forget` goes on. Seconds.
FORGET_SECONDS = 5.0
#: How long rows of an era that is over are kept, by the ids of their messages. Milliseconds.
OLD_ERA_MS = 24 * 3600 * 1000
#: libpq's word for a transaction in which a statement has failed.
_IN_ERROR = 3


class _Known(Exception):
    """The row is there already, or something else forbids it."""

    def __init__(self, error: IntegrityError) -> None:
        super().__init__(str(error))
        self.error = error


class Inbox:
    """The rows of one group in one database."""

    def __init__(self, group: str, alias: str) -> None:
        self._group = group
        self._alias = alias

    def handle(self, message: Message, handler: Handler) -> None:
        """Run the handler in a transaction with the message's row; do nothing if the row is there.

        Raises what the handler raises, and database errors: then neither effect nor row is kept.
        """
        self._require_autocommit()
        place = self._place(message)
        try:
            with transaction.atomic(using=self._alias):
                try:
                    self._rows().create(**place)
                except IntegrityError as error:
                    raise _Known(error) from None
                refuse_awaitable(handler(message))
                self._require_commit()
        except _Known as known:
            if not self._rows().filter(**place).exists():
                raise known.error from None

    def handle_batch(
        self, messages: Sequence[Message], handler: Callable[[list[Message]], Collection[str]]
    ) -> None:
        """Call the handler with those that have no row yet, in one transaction with their rows.

        It returns the ids of the messages that it refused, whose rows are not kept. It is not called if none
        is left. Raises what it raises, and database errors: then neither effect nor row is kept.
        """
        self._require_autocommit()
        known: set[tuple[Any, ...]] = set()
        while True:
            try:
                self._handle_fresh(messages, handler)
                return
            except _Known as refusal:
                # Another worker's transaction with one of them has been committed since we looked.
                before, known = known, self._known(messages)
                if known == before:
                    raise refusal.error from None

    def _handle_fresh(
        self, messages: Sequence[Message], handler: Callable[[list[Message]], Collection[str]]
    ) -> None:
        with transaction.atomic(using=self._alias):
            known = self._known(messages)
            fresh = [message for message in messages if _identity(message) not in known]
            if not fresh:
                return
            model = self._rows().model
            try:
                self._rows().bulk_create([model(**self._place(message)) for message in fresh])
            except IntegrityError as error:
                raise _Known(error) from None
            refused = handler(fresh)
            self._require_commit()
            self._delete([message for message in fresh if message.id in refused])

    def _known(self, messages: Sequence[Message]) -> set[tuple[Any, ...]]:
        """One query for each partition, which is one for what a slice delivers."""
        places: dict[tuple[str, int, str], set[int]] = {}
        for message in messages:
            where = message.topic, message.partition, message._era
            places.setdefault(where, set()).add(id_pair(message.id)[0])
        found: set[tuple[Any, ...]] = set()
        for (topic, partition, era), times in places.items():
            rows = self._rows().filter(topic=topic, partition=partition, group=self._group, era=era)
            pairs = rows.filter(ms__in=times).values_list("ms", "seq")
            found.update((topic, partition, era, *pair) for pair in pairs)
        return found

    def _delete(self, messages: Sequence[Message]) -> None:
        for start in range(0, len(messages), 100):
            wanted = (Q(**self._place(message)) for message in messages[start : start + 100])
            self._rows().filter(reduce(or_, wanted)).delete()

    def _place(self, message: Message) -> dict[str, Any]:
        ms, seq = id_pair(message.id)
        return {
            "group": self._group, "topic": message.topic, "partition": message.partition,
            "era": message._era, "ms": ms, "seq": seq,
        }  # fmt: skip

    def _rows(self) -> Any:
        from bus.models import InboxRow  # a worker imports this module before Django's apps are ready

        return InboxRow._default_manager.using(self._alias)

    def _require_autocommit(self) -> None:
        """In a transaction that an earlier handler left open, atomic() would not commit anything."""
        connection = connections[self._alias]
        if not connection.in_atomic_block and not connection.get_autocommit():
            raise TransactionManagementError(
                f"The connection to database {self._alias!r} is not in autocommit mode, so an atomic handler "
                "would never be committed. Was it left so by a handler before?"
            )

    def _require_commit(self) -> None:
        """Django and PostgreSQL roll back without a word what a handler has broken and gone on with."""
        connection = connections[self._alias]
        raw: Any = connection.connection
        if (
            raw is None
            or connection.needs_rollback
            or (connection.vendor == "postgresql" and int(raw.info.transaction_status) == _IN_ERROR)
            or (connection.vendor == "sqlite" and not raw.in_transaction)
        ):
            raise TransactionManagementError(
                "The handler returned, but its transaction cannot be committed: a database error was caught "
                "inside. Put the statement that may fail into an atomic() of its own."
            )


def check_databases(subscriptions: Iterable[Subscription]) -> None:
    """Raise ConfigurationError for atomic=<an alias that the settings do not have>."""
    for each in subscriptions:
        if each.atomic and each.atomic not in connections.settings:
            known = ", ".join(sorted(connections))
            raise ConfigurationError(
                f"subscribe({each.topic!r}, group={each.group!r}): atomic={each.atomic!r} is no alias of "
                f"DATABASES. Known: {known}."
            )


# ---------------------------------------------------------------------- rows that are over


def forget(bus: Bus, alias: str) -> int:
    """Delete the rows of a database that nothing can ask for any more (see above); how many.

    Two at once do no harm. Raises BusError, or the database's errors.
    """
    from bus.models import InboxRow, MarkCopy  # as above

    rows = InboxRow._default_manager.using(alias)
    # In this order: rows, then what Redis says of their places.
    seen = list(distinct(rows, "group", "topic", "partition", "era"))
    if not seen:
        return 0
    places = sorted({place for *place_, _era in seen for place in [tuple(place_)]})
    eras = bus.client.pipe([("HGET", _state(bus, *place), "era") for place in places])
    current = {place: text(check(era)) if era else "" for place, era in zip(places, eras, strict=True)}
    born = {(group.name, group.topic): group.born for group in bus.registry.groups()}
    copies = {
        Place(row.topic, row.partition, row.group, row.born): row.position
        for row in MarkCopy.objects.filter(prefix=bus.settings.prefix)
    }
    deleted, ends = 0, time.monotonic() + FORGET_SECONDS
    for group, topic, partition, era in random.sample(seen, len(seen)):
        if time.monotonic() > ends:
            break  # the rest has its turn next time; in any order, so that nothing is always last
        mine = rows.filter(group=group, topic=topic, partition=partition, era=era)
        declared = (group, topic) in born
        if declared and era == current[group, topic, partition]:
            mark = copies.get(Place(topic, partition, group, born[group, topic]))
            if mark is not None:
                deleted += _forget_settled(bus, mine, (group, topic, partition), id_pair(mark), ends)
        elif era.startswith(f"{bus.settings.prefix}:") or (declared and not era):
            deleted += mine.filter(ms__lt=time.time() * 1000 - OLD_ERA_MS).delete()[0]
    return deleted


def _forget_settled(
    bus: Bus, rows: Any, place: tuple[str, str, int], mark: tuple[int, int], ends: float
) -> int:
    ms, seq = mark
    below = rows.filter(Q(ms__lt=ms) | Q(seq__lte=seq), ms__lte=ms).order_by("ms", "seq")
    deleted, after = 0, below
    while time.monotonic() <= ends and (page := list(after.values_list("pk", "ms", "seq")[:PAGE])):
        (_, *first), (_, last_ms, last_seq) = page[0], page[-1]
        pending = _pending(bus, place, "-".join(map(str, first)), f"{last_ms}-{last_seq}")
        if pending is None:
            break
        over = [pk for pk, *pair in page if tuple(pair) not in pending]
        deleted += rows.filter(pk__in=over).delete()[0]
        after = below.filter(Q(ms__gt=last_ms) | Q(seq__gt=last_seq), ms__gte=last_ms)
    return deleted


def _pending(bus: Bus, place: tuple[str, str, int], first: str, last: str) -> set[tuple[int, int]] | None:
    """What is pending between two ids; None where the group or its stream is gone."""
    group, topic, partition = place
    stream = bus.keys.partition(topic, partition).stream
    found: set[tuple[int, int]] = set()
    try:
        while page := bus.client.call("XPENDING", stream, group, first, last, PAGE):
            found.update(id_pair(row[0]) for row in page)
            first = f"({text(page[-1][0])}"
    except ServerError as error:
        if is_nogroup(error):
            return None
        raise
    return found


def _state(bus: Bus, group: str, topic: str, partition: int) -> str:
    return bus.keys.partition(topic, partition).state(group)


def _identity(message: Message) -> tuple[Any, ...]:
    return message.topic, message.partition, message._era, *id_pair(message.id)
