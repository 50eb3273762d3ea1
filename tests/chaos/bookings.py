"""The database of a run, and what the atomic handlers have booked in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from config.database import database
from tests.databases import raw_connection
from tests.postgres import postgres_server

NAME = "chaos"


class Database:
    """A private PostgreSQL, or a file of SQLite, from entering to leaving."""

    def __init__(self, kind: str, directory: Path) -> None:
        self._kind = kind
        self._data = directory / "data"
        self._stack = ExitStack()
        self.url = ""
        """As JITNEY_DATABASE takes it."""

    def __enter__(self) -> Self:
        if self._kind == "postgresql":
            server = self._stack.enter_context(postgres_server())
            server.create(NAME)
            self.url = server.url(NAME)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def bookings(self) -> Iterator[tuple[str, int, str]]:
        """Topic, partition and id of the message of each effect."""
        connection: Any = raw_connection(database(self.url, self._data))
        try:
            cursor = connection.cursor()
            cursor.execute("SELECT topic, partition, message FROM shop_booking")
            yield from ((topic, partition, message) for topic, partition, message in cursor.fetchall())
        finally:
            connection.close()
