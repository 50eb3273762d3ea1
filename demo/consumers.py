"""The handlers: inventory, purchasing, revenue, popularity.

Why the figures stay exact when a process is killed at any instruction. Inventory is atomic: the bus keeps a
row for each message in the handler's own transaction, and the stock alert is a row of the outbox in the same
one. So movement and alert are there once, together, or not at all. The others show how it is done by hand:
they write the row that proves their effect in the transaction of the effect, and look for that row first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from typing import Any

from django.db import transaction

import bus
from demo.models import Booking, Movement, PageView, PurchaseOrder, Revenue, origin_of, position_of
from demo.orders import LOW_STOCK, START_STOCK, MalformedLine, OrderLine, parse
from demo.topics import orders, page_views, stock_alerts

#: A busy database or a bus that is away for a minute must not make dead letters.
PATIENT = bus.RetryPolicy(attempts=20, delay=0.2, factor=2.0, max_delay=10.0)


@bus.subscribe(orders, group="inventory", ordering="key", retry=PATIENT, atomic=True)
def move_stock(message: bus.Message) -> None:
    """Write down the movement of stock; raise an alert where the product has just become scarce."""
    try:
        line = parse(message.value)
    except MalformedLine as error:
        raise bus.Reject(str(error)) from error
    if Movement.has(origin_of(message)):
        return  # a second copy of the record, by a producer that lost a reply: another message to the bus
    last = Movement.objects.filter(product=line.product).order_by("-id").first()
    before = last.stock if last else START_STOCK
    stock = before - line.sold
    movement = Movement.objects.create(
        **position_of(message),
        origin=origin_of(message),
        product=line.product,
        change=-line.sold,
        stock=stock,
    )
    if before >= LOW_STOCK > stock:
        _alert(movement)


def _alert(movement: Movement) -> None:
    cause = {"topic": movement.topic, "partition": movement.partition, "id": movement.message_id}
    stock_alerts.publish_in_transaction(
        {"product": movement.product, "stock": movement.stock, "origin": movement.origin, "cause": cause},
        key=movement.product,
    )


@bus.subscribe(stock_alerts, group="purchasing", ordering="key", retry=PATIENT)
def buy(message: bus.Message) -> None:
    """Raise one purchase order for each alert. It does not change stock: nothing has arrived yet."""
    try:
        cause = message.value["cause"]
        position = {"topic": cause["topic"], "partition": cause["partition"], "message_id": cause["id"]}
        facts = {name: message.value[name] for name in ("product", "stock", "origin")}
    except (KeyError, TypeError) as error:
        raise bus.Reject(f"this is no stock alert: {error!r}") from error
    PurchaseOrder.objects.get_or_create(**position, defaults=facts)


@bus.subscribe(orders, group="revenue", ordering="partition", batch=500, retry=PATIENT)
def book(batch: Any) -> None:
    """Add up the money per country and hour."""
    lines: dict[bus.Message, OrderLine] = {}
    for message in batch:
        try:
            lines[message] = parse(message.value)
        except MalformedLine as error:
            batch.reject(message, str(error))
    with transaction.atomic():
        bookings = [_booking(message, lines[message]) for message in Booking.unseen(lines)]
        Booking.objects.bulk_create(bookings)
        _add_up(bookings)


def _booking(message: bus.Message, line: OrderLine) -> Booking:
    return Booking(
        **position_of(message),
        origin=origin_of(message),
        country=line.country,
        day=line.at.date(),
        hour=line.at.hour,
        amount=line.amount,
    )


def _add_up(bookings: Iterable[Booking]) -> None:
    amounts: dict[tuple[str, date, int], list[Decimal]] = defaultdict(list)
    for booking in bookings:
        amounts[booking.country, booking.day, booking.hour].append(booking.amount)
    for (country, day, hour), added in amounts.items():
        row, _ = Revenue.objects.select_for_update().get_or_create(country=country, day=day, hour=hour)
        row.amount += sum(added)
        row.lines += len(added)
        row.save(update_fields=["amount", "lines"])


@bus.subscribe(page_views, group="popularity", ordering="none", batch=500, retry=PATIENT)
def look(batch: Any) -> None:
    """Count who looked at what; the order does not matter."""
    products: dict[bus.Message, str] = {}
    for message in batch:
        product = message.value.get("product") if isinstance(message.value, dict) else None
        if isinstance(product, str) and product:
            products[message] = product
        else:
            batch.reject(message, "the view names no product")
    with transaction.atomic():
        PageView.objects.bulk_create(
            PageView(**position_of(message), origin=origin_of(message), product=products[message])
            for message in PageView.unseen(products)
        )
