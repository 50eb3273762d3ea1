"""Computes from the records alone what must come of them.

Written without any code of the handlers or of the bus: it reads the same rules (see demo.orders) a second
time, so that a mistake in one of the two shows as a difference. Standard library only.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

_NAMES = (
    "InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country",
)  # fmt: skip

#: (origin, topic, value) of a published record.
Published = tuple[str, str, Any]


@dataclass
class Expectation:
    """What the database must hold when everything has been handled. Records are named by their origin."""

    movements: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """origin → product, change of stock, stock after it."""
    alerts: dict[str, tuple[str, int]] = field(default_factory=dict)
    """origin → product, stock at the alert."""
    bookings: dict[str, Decimal] = field(default_factory=dict)
    revenue: dict[tuple[str, str, int], tuple[Decimal, int]] = field(default_factory=dict)
    """country, day, hour → money, lines."""
    views: dict[str, str] = field(default_factory=dict)
    """origin → product."""
    stock: dict[str, int] = field(default_factory=dict)
    malformed: Counter[str] = field(default_factory=Counter)
    """topic → records that must have become dead letters."""

    @classmethod
    def of(cls, records: Iterable[Published]) -> Expectation:
        """Work through the records in the order in which they were published."""
        expected = cls()
        for origin, topic, value in records:
            if topic == "page-views":
                expected.views[origin] = value["product"]
            elif (line := read_line(value)) is None:
                expected.malformed[topic] += 1
            else:
                expected._count(origin, *line)
        return expected

    def _count(
        self, origin: str, product: str, back: int, price: Decimal, country: str, at: datetime
    ) -> None:
        before = self.stock.get(product, 100)
        after = self.stock[product] = before + back
        self.movements[origin] = (product, back, after)
        if before >= 20 and after < 20:
            self.alerts[origin] = (product, after)
        money = -back * price
        self.bookings[origin] = money
        place = (country, at.date().isoformat(), at.hour)
        so_far, lines = self.revenue.get(place, (Decimal(0), 0))
        self.revenue[place] = (so_far + money, lines + 1)


def read_line(value: Any) -> tuple[str, int, Decimal, str, datetime] | None:
    """Return (product, pieces that come back, price, country, time) of an order line; None if malformed."""
    if not isinstance(value, dict) or sorted(value) != sorted(_NAMES):
        return None
    if any(len(value[name]) > 10_000 for name in _NAMES):
        return None
    invoice, product, _, quantity, date, price, _, country = (value[name].strip() for name in _NAMES)
    pieces, pounds, at = _whole(quantity), _decimal(price), _moment(date)
    if not (invoice and product and country and pieces) or pounds is None or at is None:
        return None
    back = abs(pieces) if invoice[0] == "C" else -pieces
    return product, back, pounds, country, at


def csv_records(path: Path, source: str) -> Iterator[Published]:
    """Yield the records of a CSV file, as a producer called `source` must have published them."""
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        header: list[str] = []
        number = 0
        for row in filter(None, csv.reader(file)):
            if not header:
                header = row
                continue
            number += 1
            columns = [header.index(name) for name in _NAMES]
            whole = max(columns) < len(row) <= len(header)
            value = dict(zip(_NAMES, (row[column] for column in columns), strict=True)) if whole else None
            yield f"{source}:{number}", "orders", value


def ledger_records(directory: Path, stored: Callable[[str], bool]) -> Iterator[Published]:
    """Yield what the producers with ledgers in this directory have published.

    `stored` decides about the one record, the last of its producer, that was under way when the producer was
    stopped: without a receipt and without a proof that nothing was written, either is right.
    """
    for origin, entries in _ledger_entries(directory):
        state = entries[-1]["state"]
        if state == "confirmed" or (state != "abandoned" and stored(origin)):
            yield origin, entries[0]["topic"], entries[0]["value"]


def possible_copies(directory: Path) -> Counter[str]:
    """Return topic → malformed records that may be stored more often than the expectation counts them.

    A record that had to be published again, because a reply was lost or the producer was killed, has no
    second effect; but if it is malformed, each of its copies is a dead letter.
    """
    copies: Counter[str] = Counter()
    for _, entries in _ledger_entries(directory):
        topic, states = entries[0]["topic"], [entry["state"] for entry in entries]
        if topic == "orders" and states[-1] != "abandoned" and read_line(entries[0]["value"]) is None:
            sent = states.count("intended") + states.count("repeated")
            copies[topic] += sent - (states[-1] == "confirmed")
    return copies


def _ledger_entries(directory: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Return the entries of each record, by its origin, in the order of each producer."""
    for path in sorted(directory.glob("*.jsonl")):
        records: dict[int, list[dict[str, Any]]] = {}
        for text in path.read_bytes().split(b"\n")[:-1]:
            entry = json.loads(text)
            records.setdefault(entry["n"], []).append(entry)
        for number, entries in sorted(records.items()):
            yield f"{path.stem}:{number}", entries


def _whole(text: str) -> int | None:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 7):
        return None
    return int(text)


def _decimal(text: str) -> Decimal | None:
    before, point, behind = text.removeprefix("-").partition(".")
    if not set(before + behind) <= set("0123456789") or len(before) > 7 or len(behind) > 6:
        return None
    if not before or (point and not behind):
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


def _moment(text: str) -> datetime | None:
    try:
        at = datetime.strptime(text, "%Y-%m-%d %H:%M:%S")
    except ValueError:
        return None
    return at if str(at) == text else None
