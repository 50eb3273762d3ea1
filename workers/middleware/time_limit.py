"""Keeps the soft time limit: raises SoftTimeLimitExceeded inside a handler that runs too long.

It works only in the main thread of a process, where signals arrive: in the prefork pool. The worker's main
process keeps the hard limit, and ends the pool process.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

from bus.consuming.subscriptions import Handler, Subscription


class SoftTimeLimitExceeded(Exception):
    """A handler ran longer than its soft_time_limit."""


def time_limit(subscription: Subscription, handler: Handler) -> Handler:
    """Arm a timer around the handler if its subscription has a soft limit."""
    seconds = subscription.soft_time_limit
    if seconds is None:
        return handler

    def expired(*_: Any) -> None:
        raise _exceeded(seconds)

    def call(delivery: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return handler(delivery)
        before = signal.signal(signal.SIGALRM, expired)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return handler(delivery)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    return call


def async_time_limit(subscription: Subscription, handler: Handler) -> Handler:
    """Limit the time by the event loop, in every pool. It takes effect where the handler awaits something."""
    seconds = subscription.soft_time_limit
    if seconds is None:
        return handler

    async def call(delivery: Any) -> Any:
        try:
            async with asyncio.timeout(seconds) as limit:
                return await handler(delivery)
        except TimeoutError:
            if limit.expired():
                raise _exceeded(seconds) from None
            raise

    return call


def _exceeded(seconds: float) -> SoftTimeLimitExceeded:
    return SoftTimeLimitExceeded(f"the handler ran longer than its soft_time_limit of {seconds} s")
