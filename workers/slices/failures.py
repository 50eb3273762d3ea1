"""Records, logs and signals messages that are not done.

Logs and signals carry topic, partition and id, never the payload.
"""

from __future__ import annotations

import logging
from typing import Any

from django.dispatch import Signal

from bus.consuming.lane import Lane
from bus.consuming.subscriptions import Subscription
from bus.safety.complaints import Complaints, write
from bus.signals import message_dead, message_retried
from bus.values import Message
from workers.slices import traces
from workers.slices.dispatch import Failed

logger = logging.getLogger("jitney.workers")
complaints = Complaints(logger)


def record(lane: Lane, message: Message, failed: Failed, now: int) -> bytes:
    """Record in the lane that a message is not done; return what `Lane.refused` takes. `now`: server's ms."""
    if failed.kind == "dead":
        return lane.dead(message, failed.reason, failed.error, now)
    return lane.retry(message, failed.delay, failed.error, now)


def tell(message: Message, failed: Failed, subscription: Subscription) -> None:
    """Log and signal what was recorded. Raises nothing, whatever the project has hung in there."""
    if failed.kind == "dead":
        _tell_dead(message, failed.reason, subscription, failed.exception)
        return
    write(
        logger,
        logging.WARNING,
        "Message %s of group %s failed (attempt %s) and is tried again in %.1f s.",
        _where(message),
        subscription.group,
        message.attempt,
        failed.delay,
        exc_info=failed.exception,
    )
    announce(
        message_retried,
        Lane,
        message=message,
        subscription=subscription,
        exception=failed.exception,
        delay=failed.delay,
    )


def announce(signal: Signal, sender: type, **named: Any) -> None:
    """Send a signal. Django keeps the exceptions of receivers, but not SystemExit and its like, nor what a
    filter of the log raises when it tells of them."""
    try:
        signal.send_robust(sender, **named)
    except BaseException as error:
        complaints.say((sender, type(error)), "A receiver of a signal of %s was broken off by %s.",
                       sender.__name__, traces.reason(error), level=logging.ERROR)  # fmt: skip


def suspect(lane: Lane, message: Message, subscription: Subscription, now: int) -> None:
    """Record that workers were lost with this message, perhaps by it: one attempt more, or the last was used
    up.
    """
    attempts = subscription.retry.attempts
    if message.attempt <= attempts:
        lane.note(message, "worker lost", now)
        return
    reason = f"worker lost ({attempts} of {attempts} attempts)"
    message._attempt = attempts
    lane.dead(message, reason, reason, now)
    _tell_dead(message, reason, subscription, None)


def used_up(lane: Lane, message: Message, subscription: Subscription, now: int) -> None:
    """Record a message whose attempts are all used up, and that nobody could make a dead letter.

    The process that ran the last attempt died, and its lane went to another worker; or the policy allows
    fewer than it did.
    """
    attempts = message.attempt - 1
    last = lane.failures[message.id].error.rstrip().rpartition("\n")[2]
    reason = f"{last or 'worker lost'} ({attempts} of {subscription.retry.attempts} attempts)"
    message._attempt = attempts
    lane.dead(message, reason, lane.failures[message.id].error, now)
    _tell_dead(message, reason, subscription, None)


def _tell_dead(
    message: Message, reason: str, subscription: Subscription, error: BaseException | None
) -> None:
    write(
        logger,
        logging.ERROR,
        "Message %s of group %s is a dead letter after attempt %s: %s",
        _where(message),
        subscription.group,
        message.attempt,
        reason,
        exc_info=error,
    )
    announce(message_dead, Lane, message=message, subscription=subscription, exception=error, reason=reason)


def _where(message: Message) -> str:
    return f"{message.topic}/{message.partition}/{message.id}"
