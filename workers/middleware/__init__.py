"""What is wrapped around every handler: one behaviour a module, the outermost first."""

from __future__ import annotations

from workers.dispatch import Middleware
from workers.middleware.atomic import atomic
from workers.middleware.database import database
from workers.middleware.log_context import log_context
from workers.middleware.time_limit import time_limit

#: In the order in which they see a message.
default_middleware: tuple[Middleware, ...] = (log_context, database, time_limit, atomic)

__all__ = ["default_middleware"]
