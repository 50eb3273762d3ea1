"""Database connections: a handler never starts on one that broke under the handler before it."""

from __future__ import annotations

from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from bus.subscriptions import Handler, Subscription


def database(_subscription: Subscription, handler: Handler) -> Handler:
    """After a failure, close connections that are unusable; the next handler then gets new ones.

    Celery's own Django fixup does the same before and after each slice.
    """

    def call(delivery: Any) -> Any:
        try:
            return handler(delivery)
        except BaseException:
            close_old_connections()
            raise

    return call


def async_database(_subscription: Subscription, handler: Handler) -> Handler:
    """The same in the thread in which Django's asynchronous queries run."""

    async def call(delivery: Any) -> Any:
        try:
            return await handler(delivery)
        except BaseException as error:
            raised = error
        try:
            # Outside of `except`: asgiref takes what is being handled along, in a circle with its traceback,
            # which would keep the message until the garbage collector comes.
            await sync_to_async(close_old_connections)()
            raise raised
        finally:
            del raised

    return call
