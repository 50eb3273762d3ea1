"""Tells log records which message is being handled: topic, partition, group and id, never the payload."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

from bus.consuming.subscriptions import Handler, Subscription
from bus.values import Message

_current: ContextVar[tuple[str, Any] | None] = ContextVar("jitney_delivery", default=None)


def log_context(subscription: Subscription, handler: Handler) -> Handler:
    """Remember what is being handled, until the next message or the end of the slice (see `forget`).

    It is not reset after each message: the next one follows at once, and this is on the hot path.
    """
    group = subscription.group

    def call(delivery: Any) -> Any:
        _current.set((group, delivery))
        return handler(delivery)

    return call


def async_log_context(subscription: Subscription, handler: Handler) -> Handler:
    """Remember what an `async def` handler handles. Each message has a task, and so a context, of its own."""
    group = subscription.group

    async def call(delivery: Any) -> Any:
        _current.set((group, delivery))
        return await handler(delivery)

    return call


def forget() -> None:
    """Forget the message: nothing is being handled any more."""
    _current.set(None)


class DeliveryFilter(logging.Filter):
    """Adds `bus_delivery` to log records: `orders/3/1700000000000-0 for inventory`, or ""."""

    def filter(self, record: logging.LogRecord) -> bool:
        current = _current.get()
        record.bus_delivery = ""
        if current is not None:
            group, delivery = current
            message = delivery if isinstance(delivery, Message) else delivery[0]
            record.bus_delivery = f"{message.topic}/{message.partition}/{message.id} for {group}"
        return True
