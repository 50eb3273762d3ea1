"""Closes database connections that broke, so that no handler starts on one."""

from __future__ import annotations

import asyncio
from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from bus.consuming.subscriptions import Handler, Subscription
from workers.handler_forks import handler_forks

#: The event loop itself keeps no reference to a task.
_closing: set[asyncio.Task[None]] = set()


def database(_subscription: Subscription, handler: Handler) -> Handler:
    """Close unusable connections after a failure, so that the next handler gets new ones.

    Celery's own Django fixup does the same before and after each slice.

    A process that the handler has forked off ends here. It sends nothing over the connections, which are its
    parent's (see workers.handler_forks).
    """

    def call(delivery: Any) -> Any:
        try:
            result = handler(delivery)
        except BaseException as error:
            handler_forks.end_child(error)
            close_old_connections()
            raise
        if handler_forks.is_child:
            handler_forks.end_child()
        return result

    return call


def async_database(_subscription: Subscription, handler: Handler) -> Handler:
    """Close unusable connections after a failure, in the thread in which Django's asynchronous queries run.

    Nothing waits for that: until the slice hears of the failure, another handler may end the process. The
    thread does one thing after the other, so the queries of handlers that begin later come after it.
    """

    async def call(delivery: Any) -> Any:
        try:
            result = await handler(delivery)
        except BaseException as error:
            handler_forks.end_child(error)
            task = asyncio.ensure_future(_close_old_connections())
            _closing.add(task)
            task.add_done_callback(_closing.discard)
            raise
        if handler_forks.is_child:
            handler_forks.end_child()
        return result

    return call


async def _close_old_connections() -> None:
    await sync_to_async(close_old_connections)()
