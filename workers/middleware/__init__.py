"""The middleware around every handler: one behaviour in each module, the outermost first.

Here the functions have other names than their modules. Else they would hide the modules, and no dotted name,
such as one in LOGGING, could reach what these hold.
"""

from __future__ import annotations

from collections.abc import Callable

from bus.consuming.subscriptions import Handler, Subscription
from workers.middleware.atomic import atomic as _atomic
from workers.middleware.database import async_database as _async_database
from workers.middleware.database import database as _database
from workers.middleware.log_context import async_log_context as _async_log_context
from workers.middleware.log_context import log_context as _log_context
from workers.middleware.time_limit import async_time_limit as _async_time_limit
from workers.middleware.time_limit import time_limit as _time_limit

Middleware = Callable[[Subscription, Handler], Handler]
"""Wraps a handler; called once for each subscription, not for each message."""

#: The middleware of ordinary handlers, in the order in which it sees a message.
default_middleware: tuple[Middleware, ...] = (_log_context, _database, _atomic, _time_limit)

#: The same for `async def` handlers that run several at once. They cannot be atomic.
default_async_middleware: tuple[Middleware, ...] = (_async_log_context, _async_database, _async_time_limit)

__all__ = ["Middleware", "default_async_middleware", "default_middleware"]
