"""Messages that are not done: recorded in their lane, logged, and told to whoever listens.

Logs and signals carry topic, partition and id, never the payload.
"""

from __future__ import annotations

import logging
from typing import Any

from bus.lane import Lane
from bus.signals import message_dead, message_retried
from bus.subscriptions import Subscription
from bus.unreadable import visible
from bus.values import Message
from workers.dispatch import Failed

logger = logging.getLogger("jitney.workers")


def record(lane: Lane, message: Message, failed: Failed, subscription: Subscription, now: int) -> None:
    """The handler did not succeed. `now`: ms by the server's clock."""
    if failed.kind == "dead":
        lane.dead(message, failed.reason, failed.error, now)
        _tell_dead(message, failed.reason, subscription, failed.exception)
        return
    lane.retry(message, failed.delay, failed.error, now)
    logger.warning(
        "Message %s of group %s failed (attempt %s) and is tried again in %.1f s.",
        _where(message),
        subscription.group,
        message.attempt,
        failed.delay,
        exc_info=_trace(failed.exception),
    )
    message_retried.send_robust(
        Lane, message=message, subscription=subscription, exception=failed.exception, delay=failed.delay
    )


def suspect(lane: Lane, message: Message, subscription: Subscription, now: int) -> None:
    """Workers were lost with this message, perhaps by it: one attempt more, or the last was used up."""
    attempts = subscription.retry.attempts
    if message.attempt <= attempts:
        lane.note(message, "worker lost", now)
        return
    reason = f"worker lost ({attempts} of {attempts} attempts)"
    message.attempt = attempts
    lane.dead(message, reason, reason, now)
    _tell_dead(message, reason, subscription, None)


def _tell_dead(
    message: Message, reason: str, subscription: Subscription, error: BaseException | None
) -> None:
    logger.error(
        "Message %s of group %s is a dead letter after attempt %s: %s",
        _where(message),
        subscription.group,
        message.attempt,
        visible(reason),
        exc_info=_trace(error),
    )
    message_dead.send_robust(Lane, message=message, subscription=subscription, exception=error, reason=reason)


def _where(message: Message) -> str:
    return f"{message.topic}/{message.partition}/{message.id}"


def _trace(error: BaseException | None) -> Any:
    return None if error is None else (type(error), error, error.__traceback__)
