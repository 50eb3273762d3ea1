"""What the groups of the demo write down.

Every row that a message causes carries the origin that the producer gave the record ("producer-1:17"), which
is unique: a producer whose reply was lost publishes the record once more, as a second message, and that has
no second effect. It also carries the message's position (topic, partition, id), unique as well: by it the
handlers that are not atomic find what they have done when a message is delivered again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django.db import models

import bus

if TYPE_CHECKING:
    _Text = models.Field[Decimal, Decimal]
else:
    _Text = models.TextField


class MoneyField(_Text):
    """An exact Decimal. SQLite has no decimal numbers, only floating point, so it is kept as text."""

    def from_db_value(self, value: str | None, *_context: Any) -> Decimal | None:
        return None if value is None else Decimal(value)

    def to_python(self, value: Any) -> Decimal | None:
        return None if value is None else Decimal(value)

    def get_prep_value(self, value: Any) -> str | None:
        return None if value is None else format(Decimal(value), "f")


class Effect(models.Model):
    """What one message has caused. Abstract."""

    topic = models.CharField(max_length=100)
    partition = models.PositiveIntegerField()
    message_id = models.CharField(max_length=40)
    origin = models.CharField(max_length=300, null=True)  # noqa: DJ001 - unknown origins must not be equal

    class Meta:
        abstract = True
        constraints = [
            models.UniqueConstraint(fields=["message_id", "partition", "topic"], name="%(class)s_position"),
            models.UniqueConstraint(fields=["origin"], name="%(class)s_origin"),
        ]

    @classmethod
    def has(cls, origin: str | None) -> bool:
        """Return whether a record of this origin has caused something. Unknown origins are never equal."""
        return origin is not None and cls._default_manager.filter(origin=origin).exists()

    @classmethod
    def unseen(cls, messages: Iterable[bus.Message]) -> Iterator[bus.Message]:
        """Return the messages that have caused nothing yet, each record once. Call it in the transaction."""
        messages = list(messages)
        rows = cls._default_manager
        known: set[Any] = set(
            rows.filter(message_id__in=[message.id for message in messages]).values_list(
                "topic", "partition", "message_id"
            )
        )
        origins = [origin for message in messages if (origin := origin_of(message))]
        known.update(rows.filter(origin__in=origins).values_list("origin", flat=True))
        for message in messages:
            names = {(message.topic, message.partition, message.id), origin_of(message)} - {None}
            if known.isdisjoint(names):
                yield message
            known |= names


class Movement(Effect):
    """Stock came in or went out, by one order line."""

    product = models.CharField(max_length=100)
    change = models.IntegerField()
    stock = models.IntegerField(help_text="after this movement")

    class Meta(Effect.Meta):
        indexes = [models.Index(fields=["product", "id"], name="movement_product")]

    def __str__(self) -> str:
        return f"{self.product} {self.change:+} → {self.stock}"


class PurchaseOrder(Effect):
    """More of a product is bought. The position is that of the order line behind the alert."""

    product = models.CharField(max_length=100)
    stock = models.IntegerField(help_text="when the alert was raised")

    def __str__(self) -> str:
        return f"{self.product} at {self.stock}"


class Booking(Effect):
    """The money of one order line."""

    country = models.CharField(max_length=100)
    day = models.DateField()
    hour = models.PositiveSmallIntegerField()
    amount = MoneyField()

    def __str__(self) -> str:
        return f"{self.amount} from {self.country}"


class Revenue(models.Model):
    """The sum of the bookings of a country and hour."""

    country = models.CharField(max_length=100)
    day = models.DateField()
    hour = models.PositiveSmallIntegerField()
    amount = MoneyField(default=Decimal(0))
    lines = models.PositiveIntegerField(default=0)

    class Meta:
        verbose_name_plural = "revenue"
        constraints = [models.UniqueConstraint(fields=["country", "day", "hour"], name="revenue_place")]

    def __str__(self) -> str:
        return f"{self.country}, {self.day} {self.hour} h: {self.amount}"


class PageView(Effect):
    """Somebody looked at a product."""

    product = models.CharField(max_length=100)

    class Meta(Effect.Meta):
        indexes = [models.Index(fields=["product"], name="pageview_product")]

    def __str__(self) -> str:
        return self.product


def position_of(message: bus.Message) -> dict[str, Any]:
    """Return where a message is, as fields of an Effect."""
    return {"topic": message.topic, "partition": message.partition, "message_id": message.id}


def origin_of(message: bus.Message) -> str | None:
    """Return the producer's own name for the record, or None."""
    return message.headers.get("origin") or None
