"""The floor: the id up to which all messages of a place are settled, except those listed as open.

A place is a group in a partition, in one era (see bus.transactions.inbox). Rows at or below the floor are
deleted (see bus.transactions.forgetting); from then on the floor says what they said. So whoever has inserted
the row of a message reads the floor *after* that, and not by an older snapshot of the database:

- READ COMMITTED, the default of Django everywhere: each statement sees what was committed before it began.
- SQLite: who has inserted has the write lock, so nobody commits between the insertion and the reading.
- Above that, in PostgreSQL and MariaDB, by a locking read. PostgreSQL refuses it where the floor has changed
  since the snapshot, and the transaction begins again; MariaDB reads what is there now.

A place is *opened*, with a row for its floor, before its first message is handled. Where that row is gone,
all that was known of the place was forgotten (its era was over), and nobody may go on as if it were not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from django.db import DatabaseError, connections

from bus.columns import signed, unsigned
from bus.errors import ConfigurationError, InboxUnavailable

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

Where = tuple[str, int, str]
"""Topic, partition and era. With a group it is a place."""
Pair = tuple[int, int]
"""An id as numbers."""
Statement = tuple[str, tuple[Any, ...]]
"""SQL and its parameters."""

#: Levels at which each statement sees what is committed; "" of a database with one writer at a time.
_CURRENT = frozenset(("", "read committed", "read uncommitted", "READ-COMMITTED", "READ-UNCOMMITTED"))
#: Ids whose open ones one statement asks for.
_IDS_A_STATEMENT = 100


class FloorGone(Exception):
    """The row of a floor is not there (any more)."""


@dataclass(frozen=True, slots=True)
class _Sql:
    floor: str
    locked: str
    """Reads the floor as it is committed now, whatever the isolation level."""
    open: str
    open_locked: str


class Floors:
    """The floors of one group in one database, as its handlers' transactions read them."""

    def __init__(self, group: str, alias: str) -> None:
        self._group = group
        self._alias = alias
        self._opened: dict[Where, int] = {}

    def key(self, where: Where) -> int | None:
        """Return the key of the place's floor; None if this process has not opened the place."""
        return self._opened.get(where)

    def open(self, where: Where) -> bool:
        """Open a place, before a transaction of ours; return whether its floor is new.

        Raises InboxUnavailable, and the database's errors.
        """
        from bus.models import InboxFloor  # a worker imports this module before Django's apps are ready

        topic, partition, era = where
        place: dict[str, Any] = {
            "group": self._group, "topic": topic, "partition": partition, "era": era,
        }  # fmt: skip
        floors = InboxFloor._default_manager.using(self._alias)
        rows = floors.filter(**place).values_list("pk", flat=True)
        try:
            key = rows.first()
        except DatabaseError as error:
            if connections[self._alias].in_atomic_block:
                raise
            self._explain(error)
            # The table is there, perhaps since a moment ago: no message is at fault for a migration that ran.
            key = rows.first()
        if fresh := key is None:
            self._require_transactions()
            floors.bulk_create([InboxFloor(**place)], ignore_conflicts=True)
            key = rows.get()
        self._opened[where] = int(key)
        return fresh

    def forget(self, wheres: Iterable[Where]) -> None:
        """Have these places opened again before their next messages."""
        for where in wheres:
            self._opened.pop(where, None)

    def _explain(self, error: DatabaseError) -> None:
        """Raise InboxUnavailable if the table is missing."""
        from bus.models import InboxFloor

        connection = connections[self._alias]
        connection.close_if_unusable_or_obsolete()
        if InboxFloor._meta.db_table not in connection.introspection.table_names():
            raise InboxUnavailable(
                f"Database {self._alias!r} does not have the tables of the inbox: run "
                f"`manage.py migrate jitney --database {self._alias}`. Atomic handlers wait until it has."
            ) from error

    def _require_transactions(self) -> None:
        if not connections[self._alias].features.supports_transactions:
            raise InboxUnavailable(
                f"Database {self._alias!r} keeps its tables without transactions (MyISAM), so no handler can "
                "be atomic there. Convert them to InnoDB."
            )

    def settled(self, where: Where, ids: Sequence[Pair], insertion: Statement | None = None) -> set[Pair]:
        """Return which of these messages of an open place are settled for good.

        Call it in the transaction that has inserted their rows, or give the `insertion`, which it does first.
        It makes one query where all lie above the floor. Raises FloorGone, and the database's errors.
        """
        floor = self._opened[where]
        connection = connections[self._alias]
        sql = _sql(connection)
        with connection.cursor() as cursor:
            if insertion is None:
                cursor.execute(sql.floor, (floor,))
            elif _takes_several(connection):
                # One round trip. Each statement has a snapshot of its own, as if they were sent one by one.
                cursor.execute(f"{insertion[0]}; {sql.floor}", (*insertion[1], floor))
                cursor.nextset()
            else:
                cursor.execute(*insertion)
                cursor.execute(sql.floor, (floor,))
            row = cursor.fetchone()
            locking = row is not None and row[2] not in _CURRENT
            if locking:
                cursor.execute(sql.locked, (floor,))
                row = cursor.fetchone()
            if row is None:
                raise FloorGone
            floor_pair = unsigned(row[0]), unsigned(row[1])
            below = {pair for pair in ids if pair <= floor_pair}
            if below:
                below -= self._open_ones(cursor, sql.open_locked if locking else sql.open, floor, below)
            return below

    def _open_ones(self, cursor: Any, sql: str, floor: int, ids: set[Pair]) -> set[Pair]:
        open_ids: set[Pair] = set()
        every = sorted(signed(ms) for ms, _ in ids)
        for start in range(0, len(every), _IDS_A_STATEMENT):
            some = every[start : start + _IDS_A_STATEMENT]
            # Those of a range, which the index finds; other open ones in it do no harm.
            cursor.execute(sql, (floor, some[0], some[-1]))
            open_ids.update((unsigned(ms), unsigned(seq)) for ms, seq in cursor.fetchall())
        return open_ids


def require_supported(alias: str, where: str) -> None:
    """Raise ConfigurationError for a database whose isolation of transactions we do not know."""
    connection = connections[alias]
    if connection.vendor not in SUPPORTED:
        raise ConfigurationError(
            f"{where}: that database is {connection.display_name}. Atomic handlers are for SQLite, "
            "PostgreSQL, MariaDB and MySQL, whose isolation of transactions Jitney knows."
        )


#: Vendor → the expression of the isolation level, and what makes a reading a locking one.
_SNAPSHOTS = {
    "sqlite": ("''", ""),
    "postgresql": ("current_setting('transaction_isolation')", " FOR SHARE"),
    "mysql": ("@@transaction_isolation", " LOCK IN SHARE MODE"),
}


#: Vendors of databases whose isolation of transactions we know.
SUPPORTED = frozenset(_SNAPSHOTS)


def _takes_several(connection: BaseDatabaseWrapper) -> bool:
    """Return whether one call takes several statements: psycopg 3, unless the server binds the parameters."""
    return (
        connection.vendor == "postgresql"
        and hasattr(connection.Database, "ClientCursor")  # type: ignore[attr-defined]
        and not connection.settings_dict["OPTIONS"].get("server_side_binding")
    )


def _sql(connection: BaseDatabaseWrapper) -> _Sql:
    level, lock = _SNAPSHOTS[connection.vendor]
    if connection.vendor == "mysql":
        raw: Any = connection
        if raw.mysql_is_mariadb and raw.mysql_version < (11, 1):
            level = "@@tx_isolation"
    quote = connection.ops.quote_name
    return _written(quote("jitney_inboxfloor"), quote("jitney_inboxopen"), level, lock)


@cache
def _written(floors: str, opens: str, level: str, lock: str) -> _Sql:
    floor = f"FROM {floors} WHERE id = %s"
    open_ = f"SELECT ms, seq FROM {opens} WHERE floor_id = %s AND ms BETWEEN %s AND %s"  # noqa: S608 - our names
    return _Sql(
        floor=f"SELECT ms, seq, {level} {floor}",
        locked=f"SELECT ms, seq {floor}{lock}",
        open=open_,
        open_locked=f"{open_}{lock}",
    )
