"""The inbox: a row for each message that a handler has handled, written in the handler's own transaction.

So the handler's effect in that database and the row that proves it are committed together or not at all,
and a message that comes again finds its row and is not handled again: once in effect, whatever dies when.

A row is known by group, topic, partition, id, and *era*: a token that is new whenever the ids of a
partition may stand for other messages than before, or the group is meant to handle them again. It is a
field of the group's state in Redis (see `ensure.lua`), and begins with the prefix of its bus.

Rows do not stay for ever (see bus.transactions.forgetting). A floor takes their place, which is read after
the insertion (see bus.transactions.floor): so an owner that was frozen until the row of its message was
forgotten meets the floor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from functools import reduce
from operator import or_
from typing import Any

from django.db import DatabaseError, IntegrityError, connections, router, transaction
from django.db.models import Q
from django.db.transaction import TransactionManagementError

from bus.columns import signed
from bus.consuming.handlers.running import refuse_unrun
from bus.consuming.subscriptions import Handler, Subscription
from bus.errors import ConfigurationError, StaleLease
from bus.safety.complaints import Complaints
from bus.transactions.conflicts import ConflictWatch, is_conflict
from bus.transactions.floor import FloorGone, Floors, Pair, Statement, Where, require_supported
from bus.values import Message, id_pair

logger = logging.getLogger("bus.inbox")
complaints = Complaints(logger)

#: How often a transaction begins again that another one was in the way of.
TRIES = 5
#: libpq's word for a transaction in which a statement has failed.
_IN_ERROR = 3

_Rows = set[tuple[Any, ...]]
_Refused = Callable[[list[Message]], Collection[str]]


class _RowRefused(Exception):
    """The database refused a row: it is there already, or something else forbids it."""

    def __init__(self, error: IntegrityError) -> None:
        super().__init__(str(error))
        self.error = error


class _Settled(Exception):
    """No message is left to be handled, so the transaction is rolled back."""


class Inbox:
    """The rows of one group in one database."""

    def __init__(self, group: str, alias: str) -> None:
        self._group = group
        self._alias = alias
        self._floors = Floors(group, alias)
        self._insert = ""

    def handle(self, message: Message, handler: Handler) -> None:
        """Call the handler in a transaction with the message's row; do nothing if it was settled before.

        Raises what the handler raises, database errors, StaleLease, and InboxUnavailable (the handler was not
        called): then the database keeps neither effect nor row.
        """
        where = message.topic, message.partition, message._era
        self._transact([message], (where,), lambda _: self._handle(message, where, handler))

    def _handle(self, message: Message, where: Where, handler: Handler) -> None:
        pair = id_pair(message.id)
        try:
            settled = self._floors.settled(where, (pair,), self._insertion(where, pair))
        except IntegrityError as error:
            raise _RowRefused(error) from None
        if settled:
            self._tell(message)
            raise _Settled
        refuse_unrun(handler(message))

    def handle_batch(self, messages: Sequence[Message], handler: _Refused) -> None:
        """Call the handler with the messages not settled before, in one transaction with their rows.

        The handler returns the ids of messages that it refuses, whose rows are not kept. It is not called if
        no message is left. Raises what `handle` raises.
        """
        self._transact(
            messages, _wheres(messages), lambda known_rows: self._handle_fresh(messages, known_rows, handler)
        )

    def _handle_fresh(self, messages: Sequence[Message], known_rows: _Rows, handler: _Refused) -> None:
        # The insertion comes first: a transaction that began by reading could not write any more where
        # another one has written since (SQLite), or would lock what it found missing (MariaDB).
        fresh = [message for message in messages if _identity(message) not in known_rows]
        model = self._rows().model
        try:
            self._rows().bulk_create([model(**self._row(message)) for message in fresh])
        except IntegrityError as error:
            raise _RowRefused(error) from None
        settled = {
            (*where, *pair)
            for where in _wheres(fresh)
            for pair in self._floors.settled(where, _pairs(fresh, where))
        }
        if settled:
            for message in (message for message in fresh if _identity(message) in settled):
                self._tell(message)
            # Their rows may stay: they say what is so, and are forgotten like others.
            fresh = [message for message in fresh if _identity(message) not in settled]
        if not fresh:
            raise _Settled
        refused = handler(fresh)
        self._delete([message for message in fresh if message.id in refused])

    # ------------------------------------------------------------------ the transaction

    def _transact(
        self, messages: Sequence[Message], wheres: Iterable[Where], work: Callable[[_Rows], None]
    ) -> None:
        """Do the work in a transaction; at most TRIES times, if another transaction was in the way."""
        connection = connections[self._alias]
        self._require_autocommit(connection)
        tries = 0
        known_rows: _Rows = set()
        while True:
            tries += 1
            for where in wheres:
                if self._floors.key(where) is None:
                    self._open(where, messages[0])
            watch = ConflictWatch() if connection.vendor == "mysql" else None
            try:
                with transaction.atomic(using=self._alias):
                    with nullcontext() if watch is None else connection.execute_wrapper(watch):
                        work(known_rows)
                    if watch is not None and watch.error is not None:
                        raise watch.error
                    self._require_commit(connection)
                return
            except _Settled:
                return
            except FloorGone:
                self._floors.forget(wheres)
                if tries >= TRIES:
                    raise StaleLease("The floor of an inbox is gone again and again.") from None
            except _RowRefused as refusal:
                # Committed by another worker, or by this one before; or something else forbids the row.
                rows = self._known(messages)
                if len(rows) == len(messages):
                    return
                if tries >= TRIES or (tries > 1 and rows <= known_rows):
                    raise refusal.error from None
                known_rows |= rows
            except DatabaseError as error:
                if tries >= TRIES or connection.in_atomic_block or not is_conflict(error):
                    raise
                logger.info("A transaction of group %s begins again: %s", self._group, error)

    def _open(self, where: Where, message: Message) -> None:
        """Open a place before its first message. Raises StaleLease if we make its floor and own it no more.

        Somebody who was frozen until the place was over must not make its floor again: that would be an empty
        one.
        """
        fresh = self._floors.open(where)
        if fresh and message._prove is not None and not message.lease_valid():
            self._floors.forget([where])
            raise StaleLease(f"{message.topic}/{message.partition} is another worker's now.")

    def _tell(self, message: Message) -> None:
        complaints.say(
            (message.topic, message.partition, self._group),
            "Message %s/%s/%s is not handled again: the floor of the inbox says that group %s settled it.",
            message.topic, message.partition, message.id, self._group,
            level=logging.INFO,
        )  # fmt: skip

    # ------------------------------------------------------------------ rows

    def _insertion(self, where: Where, pair: Pair) -> Statement:
        """Return the statement that inserts a row, by hand: Django's models take twice the time."""
        if not self._insert:
            self._insert = _insertion(connections[self._alias], self._rows().model)
        return self._insert, (self._group, *where, signed(pair[0]), signed(pair[1]))

    def _known(self, messages: Sequence[Message]) -> _Rows:
        """Return the rows that there are of these messages. It makes one query for each partition."""
        known_rows: _Rows = set()
        for where in _wheres(messages):
            topic, partition, era = where
            ids = set(_pairs(messages, where))
            rows = self._rows().filter(topic=topic, partition=partition, group=self._group, era=era)
            pairs = rows.filter(ms__in={ms for ms, _ in ids}).values_list("ms", "seq")
            known_rows.update((*where, *pair) for pair in pairs if pair in ids)
        return known_rows

    def _delete(self, messages: Sequence[Message]) -> None:
        for start in range(0, len(messages), 100):
            conditions = (Q(**self._row(message)) for message in messages[start : start + 100])
            self._rows().filter(reduce(or_, conditions)).delete()

    def _row(self, message: Message) -> dict[str, Any]:
        ms, seq = id_pair(message.id)
        return {
            "group": self._group, "topic": message.topic, "partition": message.partition,
            "era": message._era, "ms": ms, "seq": seq,
        }  # fmt: skip

    def _rows(self) -> Any:
        from bus.models import InboxRow  # a worker imports this module before Django's apps are ready

        return InboxRow._default_manager.using(self._alias)

    # ------------------------------------------------------------------ what must hold

    def _require_autocommit(self, connection: Any) -> None:
        """Raise if an earlier handler left a transaction open: atomic() would not commit anything."""
        if not connection.in_atomic_block and not connection.get_autocommit():
            raise TransactionManagementError(
                f"The connection to database {self._alias!r} is not in autocommit mode, so an atomic handler "
                "would never be committed. Was it left so by a handler before?"
            )

    def _require_commit(self, connection: Any) -> None:
        """Raise if the handler went on after a database error, so that the commit would be a rollback."""
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
    """Raise ConfigurationError for a database in which a handler cannot be atomic. Opens no connection."""
    from bus.models import InboxRow

    for subscription in subscriptions:
        alias = subscription.atomic
        if not alias:
            continue
        where = f"subscribe({subscription.topic!r}, group={subscription.group!r}, atomic={alias!r})"
        if alias not in connections.settings:
            aliases = ", ".join(sorted(connections))
            raise ConfigurationError(f"{where}: that is no alias of DATABASES. Known: {aliases}.")
        require_supported(alias, where)
        if not router.allow_migrate_model(alias, InboxRow):
            raise ConfigurationError(
                f"{where}: a database router keeps the tables of app 'jitney' out of that database, but the "
                "row that proves an effect must lie where the effect is. Let allow_migrate() of the router "
                f"allow 'jitney' in {alias!r}, and run `migrate jitney --database {alias}`."
            )


def _insertion(connection: Any, model: Any) -> str:
    quote = connection.ops.quote_name
    columns = ("group", "topic", "partition", "era", "ms", "seq")
    names = ", ".join(quote(name) for name in columns)
    table = quote(model._meta.db_table)
    return f"INSERT INTO {table} ({names}) VALUES (%s, %s, %s, %s, %s, %s)"  # noqa: S608 - our own names


def _wheres(messages: Iterable[Message]) -> list[Where]:
    return list(dict.fromkeys((message.topic, message.partition, message._era) for message in messages))


def _pairs(messages: Iterable[Message], where: Where) -> list[Pair]:
    return [
        id_pair(message.id)
        for message in messages
        if (message.topic, message.partition, message._era) == where
    ]


def _identity(message: Message) -> tuple[Any, ...]:
    return message.topic, message.partition, message._era, *id_pair(message.id)
