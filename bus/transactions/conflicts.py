"""Conflicts: database errors that mean that another transaction was in the way, so begin again."""

from __future__ import annotations

from typing import Any

from django.db import DatabaseError

#: Serialization failure, deadlock.
_POSTGRESQL = frozenset(("40001", "40P01"))
#: Deadlock; a record that has changed since the transaction's snapshot.
_MYSQL = frozenset((1213, 1020))


def is_conflict(error: DatabaseError) -> bool:
    """Return whether the database rolled the transaction back in favour of another one."""
    cause: Any = error.__cause__
    if cause is None:
        return False
    if (getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)) in _POSTGRESQL:
        return True
    return _of_mysql(error) and bool(error.args) and error.args[0] in _MYSQL


def _of_mysql(error: DatabaseError) -> bool:
    return type(error.__cause__).__module__.startswith(("pymysql", "MySQLdb"))


class ConflictWatch:
    """Notices conflicts that a handler catches inside its transaction. It is an `execute_wrapper` of Django.

    PostgreSQL refuses everything after one. MariaDB and MySQL roll back and go on: what comes after would be
    committed without what came before.
    """

    def __init__(self) -> None:
        self.error: DatabaseError | None = None

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        try:
            return execute(sql, params, many, context)
        except DatabaseError as error:
            if is_conflict(error):
                self.error = self.error or error
            raise
