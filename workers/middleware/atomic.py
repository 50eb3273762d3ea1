"""Runs atomic handlers in one transaction with the inbox row of the message (see bus.transactions.inbox)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bus.consuming.handlers.running import refuse_unrun
from bus.consuming.subscriptions import Handler, Subscription
from bus.errors import InboxUnavailable
from bus.transactions.inbox import Inbox
from bus.values import Message
from workers.batch import Batch
from workers.handler_forks import handler_forks


def atomic(subscription: Subscription, handler: Handler) -> Handler:
    """Wrap a handler in a transaction.

    Whatever it raises, also by its soft time limit, rolls back effect and row.

    This stands around the time limit, not inside: an alarm in the middle of a commit or rollback would break
    it.
    """
    if subscription.atomic is None:
        return handler
    inbox = Inbox(subscription.group, subscription.atomic)
    handler = _inside(handler)

    def call_single(message: Message) -> None:
        inbox.handle(message, handler)

    def call_batch(batch: Batch) -> None:
        def call(fresh: list[Message]) -> Collection[str]:
            part = Batch(fresh, batch.ordering)
            refuse_unrun(handler(part))
            part.check()
            batch.take_in(part)
            return {*part.refused, *(message.id for message in part.passed_over)}

        inbox.handle_batch(batch, call)

    wrapped: Any = call_single if subscription.batch is None else call_batch
    return wrapped  # type: ignore[no-any-return]


def _inside(handler: Handler) -> Handler:
    """Wrap the handler once more, for what must be done before the transaction ends."""

    def call(delivery: Any) -> Any:
        try:
            result = handler(delivery)
        except BaseException as error:
            handler_forks.end_child(error)  # or its parent's transaction would be rolled back, or committed
            if isinstance(error, InboxUnavailable):
                error.begun = True
            raise
        handler_forks.end_child()
        return result

    return call
