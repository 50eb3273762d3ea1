"""What an order line is, and what makes one malformed.

A line is a record of eight texts, the columns of COLUMNS. It is malformed, and becomes a dead letter, unless:

1. all eight columns are there, and no others;
2. InvoiceNo, StockCode and Country are not blank (spaces around them do not count);
3. Quantity is a whole number of at most 7 digits, and not 0;
4. UnitPrice is a decimal number of at most 7 digits before the point and 6 behind it;
5. InvoiceDate is a time of the form 2010-12-01 08:26:00;
6. no column has more than 10,000 characters.

What leaves the shop is `sold`. A positive Quantity n sells n; a negative one, -n, is a return: n come
back. An InvoiceNo with a leading C cancels a sale: |Quantity| come back, whatever its sign. Stock changes
by `-sold`, and the money is `sold · UnitPrice`, so what comes back is paid back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

COLUMNS = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)

#: Every product begins with so many pieces in stock.
START_STOCK = 100

#: Falling from this or more to less raises an alert.
LOW_STOCK = 20

#: Characters in one column.
LONGEST_TEXT = 10_000

_QUANTITY = re.compile(r"-?[0-9]{1,7}")
_PRICE = re.compile(r"-?[0-9]{1,7}(\.[0-9]{1,6})?")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}")


class MalformedLine(ValueError):
    """This is no order line; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderLine:
    """One valid order line."""

    product: str
    sold: int
    """Pieces that left the shop; negative: that came back."""
    price: Decimal
    """Pounds for one piece."""
    country: str
    at: datetime
    """When, by the clock of the shop (naive)."""

    @property
    def amount(self) -> Decimal:
        """Pounds earned; negative: paid back."""
        return self.sold * self.price


def parse(record: Any) -> OrderLine:
    """Return the order line in a message's value. Raises MalformedLine."""
    texts = _texts(record)
    invoice, product, country = (_filled(texts, name) for name in ("InvoiceNo", "StockCode", "Country"))
    quantity = int(_matching(texts, "Quantity", _QUANTITY, "a whole number of at most 7 digits"))
    if quantity == 0:
        raise MalformedLine("Quantity is 0: the line moves nothing")
    price = Decimal(_matching(texts, "UnitPrice", _PRICE, "a price"))
    return OrderLine(
        product=product,
        sold=-abs(quantity) if invoice.startswith("C") else quantity,
        price=price,
        country=country,
        at=_time(texts),
    )


def key_of(record: Mapping[str, str]) -> str | None:
    """Return the key of an order line: its product, so that the lines of a product keep their order."""
    return record.get("StockCode", "").strip() or None


def _texts(record: Any) -> dict[str, str]:
    if not isinstance(record, dict):
        raise MalformedLine(f"an order line is an object with {len(COLUMNS)} columns, not {_short(record)}")
    if missing := [name for name in COLUMNS if name not in record]:
        raise MalformedLine(f"without {', '.join(missing)}")
    if unknown := [name for name in record if name not in COLUMNS]:
        raise MalformedLine(f"with unknown columns: {_short(', '.join(unknown))}")
    for name, value in record.items():
        if not isinstance(value, str):
            raise MalformedLine(f"{name} is not a text: {_short(value)}")
        if len(value) > LONGEST_TEXT:
            raise MalformedLine(f"{name} has {len(value):,} characters; at most {LONGEST_TEXT:,} are allowed")
    return {name: value.strip() for name, value in record.items()}


def _filled(texts: dict[str, str], name: str) -> str:
    if not texts[name]:
        raise MalformedLine(f"{name} is blank")
    return texts[name]


def _matching(texts: dict[str, str], name: str, pattern: re.Pattern[str], what: str) -> str:
    if not pattern.fullmatch(texts[name]):
        raise MalformedLine(f"{name} {_short(texts[name])} is not {what}")
    return texts[name]


def _time(texts: dict[str, str]) -> datetime:
    text = _matching(texts, "InvoiceDate", _TIME, "a time such as 2010-12-01 08:26:00")
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise MalformedLine(f"InvoiceDate {_short(text)}: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
