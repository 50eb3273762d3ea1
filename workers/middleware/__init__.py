"""What is wrapped around every handler: one behaviour a module, the outermost first."""

from __future__ import annotations

from workers.dispatch import Middleware
from workers.middleware.atomic import atomic
from workers.middleware.database import async_database, database
from workers.middleware.log_context import async_log_context, log_context
from workers.middleware.time_limit import async_time_limit, time_limit

#: In the order in which they see a message.
default_middleware: tuple[Middleware, ...] = (log_context, database, atomic, time_limit)

#: The same for `async def` handlers that run several at once. They cannot be atomic.
default_async_middleware: tuple[Middleware, ...] = (async_log_context, async_database, async_time_limit)

__all__ = ["default_async_middleware", "default_middleware"]
