"""Makes plausible orders and page views without a file: the same for the same seed, without end.

Each producer sells products of its own. So the order in which a product's lines are published is the
order in one producer's ledger, and what must come of them can be computed from the ledgers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

from demo.orders import START_STOCK, key_of
from demo.source import Record

_COUNTRIES = ("United Kingdom",) * 12 + ("France", "Germany", "EIRE", "Norway", "Netherlands", "Australia")
_ADJECTIVES = ("WHITE", "RED", "RETRO", "WOODEN", "VINTAGE", "GLASS", "KNITTED", "CREAM")
_THINGS = ("HEART HOLDER", "LANTERN", "COAT HANGER", "WATER BOTTLE", "NESTING BOXES", "MUG", "CAKE STAND")
_QUANTITIES = (1, 1, 2, 2, 3, 4, 6, 6, 8, 12, 24)

#: Shares of all lines.
_CANCELLED, _MALFORMED = 0.02, 0.005

_DAMAGES: tuple[Callable[[dict[str, str]], object], ...] = (
    lambda line: line.update(Quantity="six"),
    lambda line: line.update(Quantity="0"),
    lambda line: line.update(UnitPrice=""),
    lambda line: line.update(InvoiceDate="yesterday"),
    lambda line: line.update(StockCode=" "),
    lambda line: line.pop("Country"),
)


@dataclass(slots=True)
class _Product:
    code: str
    name: str
    price: str
    stock: int = START_STOCK


def generated_records(seed: int, number: int, producers: int) -> Iterator[Record]:
    """Yield the records of producer `number` (from 1) of so many."""
    random = Random(f"{seed}/{number}")
    products = [_product(random, 20000 + index * producers + number) for index in range(60)]
    clock = datetime(2010, 12, 1, 8)
    invoice = 500_000 + number
    while True:
        clock += timedelta(seconds=random.randint(5, 120))
        invoice += producers
        basket = random.sample(products, random.randint(1, 8))
        for product in random.sample(basket, (len(basket) + 1) // 2):
            yield Record("page-views", product.code, {"product": product.code, "at": str(clock)})
        head = _head(random, invoice, clock)
        for product in basket:
            yield _order(random, head, product)


def _product(random: Random, number: int) -> _Product:
    name = f"{random.choice(_ADJECTIVES)} {random.choice(_THINGS)}"
    return _Product(str(number), name, f"{random.randint(1, 12)}.{random.randint(0, 99):02}")


def _head(random: Random, invoice: int, clock: datetime) -> dict[str, str]:
    return {
        "InvoiceNo": str(invoice),
        "InvoiceDate": str(clock),
        "CustomerID": random.choice(("", f"{random.randint(12000, 18300)}.0")),
        "Country": random.choice(_COUNTRIES),
    }


def _order(random: Random, head: dict[str, str], product: _Product) -> Record:
    quantity = random.choice(_QUANTITIES)
    line = {**head, "StockCode": product.code, "Description": product.name, "UnitPrice": product.price}
    if product.stock < 0:  # goods come in, so that the product can become scarce again
        quantity = product.stock - random.randint(60, START_STOCK)
        line["UnitPrice"] = "0.0"
    elif random.random() < _CANCELLED:
        quantity = -quantity
        line["InvoiceNo"] = f"C{head['InvoiceNo']}"
    line["Quantity"] = str(quantity)
    if random.random() < _MALFORMED:
        random.choice(_DAMAGES)(line)
    else:
        product.stock -= quantity
    return Record("orders", key_of(line), line)
