"""Compare the database with what must be in it: `python -m demo.exactness.reconcile`, a process of its own.

Prints OK, or the differences, and exits 0 or 1. It imports nothing of the bus, of Django or of the handlers:
the records come from the CSV file or the producers' ledgers, the results from SQLite.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from demo.exactness.expectation import Expectation, csv_records, ledger_records, possible_copies

#: Differences printed; the rest is counted.
_SHOWN = 20


class Database:
    """The tables of the demo, to read."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> Database:
        """The database in this file, read-only."""
        return cls(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30))

    def rows(self, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
        return self._connection.execute(f"SELECT {columns} FROM demo_{table} ORDER BY id")  # noqa: S608 - own names

    def by_origin(self, table: str, columns: str) -> dict[str, tuple[Any, ...]]:
        """Rows by origin; those of messages that no producer of the demo published by their position."""
        rows = {}
        for origin, topic, partition, message_id, *rest in self.rows(
            table, f"origin, topic, partition, message_id, {columns}"
        ):
            rows[origin or f"{topic}/{partition}/{message_id}"] = tuple(rest)
        return rows

    def waiting(self) -> int:
        """Return how many messages in the outbox are not published yet."""
        ((count,),) = self._connection.execute("SELECT COUNT(*) FROM jitney_outboxrow")
        return int(count)

    def close(self) -> None:
        self._connection.close()

    def stored(self, origin: str) -> bool:
        """Return whether any group has written down the effect of this record."""
        return any(
            self._connection.execute(f"SELECT 1 FROM demo_{table} WHERE origin = ?", [origin]).fetchone()  # noqa: S608 - own names
            for table in ("movement", "booking", "pageview")
        )


def differences(expected: Expectation, database: Database) -> Iterator[str]:
    """Yield every way in which the database is not as expected, in words."""
    movements = database.by_origin("movement", "product, change, stock")
    yield from _compare("movement", expected.movements, movements)
    yield from _compare("stock of", expected.stock, _stock(database))
    purchases = database.by_origin("purchaseorder", "product, stock")
    yield from _compare("purchase order", expected.alerts, purchases)
    bookings = {name: Decimal(row[0]) for name, row in database.by_origin("booking", "amount").items()}
    yield from _compare("booking", expected.bookings, bookings)
    revenue = {
        (country, day, hour): (Decimal(amount), lines)
        for country, day, hour, amount, lines in database.rows(
            "revenue", "country, CAST(day AS TEXT), hour, amount, lines"
        )
    }
    yield from _compare("revenue of", expected.revenue, revenue)
    views = {name: row[0] for name, row in database.by_origin("pageview", "product").items()}
    yield from _compare("page view", expected.views, views)


def wrong_dead_letters(
    expected: Mapping[str, int], copies: Mapping[str, int], dead: Mapping[str, int]
) -> Iterator[str]:
    """Yield in words the groups whose dead letters are not the malformed records of their topic."""
    for group, found in dead.items():
        topic = group.partition("/")[0]
        least = expected.get(topic, 0)
        if not least <= found <= least + copies.get(topic, 0):
            yield f"dead letters of {group}: expected {least:,}, found {found:,}"


def _stock(database: Database) -> dict[str, int]:
    stock: dict[str, int] = {}
    for product, change in database.rows("movement", "product, change"):
        stock[product] = stock.get(product, 100) + change
    return stock


def _compare(what: str, expected: Mapping[Any, Any], found: Mapping[Any, Any]) -> Iterator[str]:
    for name in expected.keys() | found.keys():
        right, there = expected.get(name), found.get(name)
        if right != there:
            yield f"{what} {_text(name)}: expected {_text(right)}, found {_text(there)}"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "nothing" if value is None else str(value)


def _summary(expected: Expectation) -> str:
    return (
        f"{len(expected.movements):,} order lines moved {len(expected.stock):,} products, "
        f"{len(expected.alerts):,} purchase orders, {len(expected.revenue):,} sums of revenue, "
        f"{len(expected.views):,} page views; {sum(expected.malformed.values()):,} malformed lines"
    )


def report(expected: Expectation, found: Sequence[str], say: Callable[[str], object]) -> bool:
    """Say how the comparison went; return whether there is no difference."""
    for text in found[:_SHOWN]:
        say(f"  {text}")
    if len(found) > _SHOWN:
        say(f"  … and {len(found) - _SHOWN:,} more")
    say(f"DIFFERENT: {len(found):,} differences" if found else f"OK: {_summary(expected)}")
    return not found


def main() -> int:
    """Parse the arguments and compare."""
    parser = argparse.ArgumentParser(prog="demo.exactness.reconcile")
    parser.add_argument("database", type=Path)
    parser.add_argument("--file", type=Path, help="the CSV file that was published, if one was")
    parser.add_argument("--source", default="file", help="the name under which it was published")
    parser.add_argument("--ledgers", type=Path, required=True, help="the producers' ledgers, a directory")
    parser.add_argument("--dead", action="append", default=[], metavar="TOPIC/GROUP=N", help="as seen")
    options = parser.parse_args()
    database = Database.open(options.database)
    if options.file:
        records = csv_records(options.file, options.source)
    else:
        records = ledger_records(options.ledgers, database.stored)
    expected = Expectation.of(records)
    dead = {group: int(count) for group, _, count in (text.partition("=") for text in options.dead)}
    copies = possible_copies(options.ledgers)
    wrong = [*differences(expected, database), *wrong_dead_letters(expected.malformed, copies, dead)]
    return 0 if report(expected, sorted(wrong), print) else 1


if __name__ == "__main__":
    sys.exit(main())
