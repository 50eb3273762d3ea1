"""Jitney: Kafka-style topics on the Redis that a Django team already runs.

This module is the public API. It can be imported before Django is configured, and opens no connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

from bus import default as _default
from bus.client import Bus, TopicHandle
from bus.consuming.subscriptions import Handler, Subscription
from bus.durations import parse_duration
from bus.errors import (
    BufferFull,
    BusError,
    BusFull,
    BusUnavailable,
    ConfigurationError,
    Forbidden,
    InvalidMessage,
    NotInTransaction,
    ProducerClosed,
    PublishUncertain,
    ReadOnly,
    Reject,
    Retry,
    StaleLease,
    Undecodable,
    UnknownGroup,
    UnknownTopic,
)
from bus.publishing.future import PublishFuture
from bus.publishing.producer import Producer
from bus.topics import declared as _declared
from bus.values import Message, Ordering, Position, Receipt, RetryPolicy, TopicSpec

__all__ = [
    # topics and publishing
    "Bus",
    "Producer",
    "PublishFuture",
    "TopicHandle",
    "apublish",
    "apublish_many",
    "publish",
    "publish_in_transaction",
    "publish_many",
    "publish_on_commit",
    "topic",
    # consuming
    "RetryPolicy",
    "subscribe",
    # values
    "Message",
    "Position",
    "Receipt",
    "TopicSpec",
    # raised by handlers
    "Reject",
    "Retry",
    # errors
    "BufferFull",
    "BusError",
    "BusFull",
    "BusUnavailable",
    "Forbidden",
    "ConfigurationError",
    "InvalidMessage",
    "NotInTransaction",
    "ProducerClosed",
    "PublishUncertain",
    "ReadOnly",
    "StaleLease",
    "Undecodable",
    "UnknownGroup",
    "UnknownTopic",
]

__version__ = "0.1.0"

_Function = TypeVar("_Function", bound=Handler)


def topic(name: str, *, partitions: int = 1, retention: str | timedelta | float | None = None) -> TopicHandle:
    """Declare a topic of the default bus and return its handle.

    `partitions`: 1 to 1,024. `retention`: such as "7d"; None keeps messages for ever. Opens no connection and
    needs no settings, so put it in an app's `topics.py`. Raises ConfigurationError.
    """
    _declared.by_code.add(TopicSpec(name=name, partitions=partitions, retention=parse_duration(retention)))
    return TopicHandle(name, _default.get)


def publish(
    topic: str,
    value: Any,
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    message_id: str | None = None,
    delay: float | timedelta | None = None,
    at: datetime | None = None,
) -> Receipt:
    """Store one message in a topic of the default bus and return its receipt.

    `value`: anything JSON can hold, or bytes, which stay as they are. `key`: messages of one key keep their
    order. `headers`: str to str.

    `message_id`: the message is stored once within BUS["DEDUPE_WINDOW"] seconds; a second publish returns the
    first receipt with `duplicate=True`. `delay` (seconds) or `at` (an aware datetime): a worker stores the
    message when it is due by the server's clock; the id in the receipt is then `d` and a number.

    Raises InvalidMessage, UnknownTopic, BusUnavailable or BusFull (nothing was written), or PublishUncertain
    (the reply was lost: the message may or may not be stored; with a `message_id` you can publish it again).
    """
    return _default.get().publish(
        topic, value, key=key, headers=headers, message_id=message_id, delay=delay, at=at
    )


def publish_many(
    topic: str,
    values: Iterable[Any],
    *,
    key: Callable[[Any], str | None] | None = None,
    headers: Callable[[Any], Mapping[str, str] | None] | None = None,
    message_id: Callable[[Any], str | None] | None = None,
) -> int:
    """Store messages in their order, from any iterable however long, and return how many.

    `key`, `headers` and `message_id` are called with each value. Raises what `publish` raises, for the
    message at fault. The messages before it are stored, and a note on the error says how many.
    """
    return _default.get().publish_many(topic, values, key=key, headers=headers, message_id=message_id)


async def apublish(
    topic: str,
    value: Any,
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    message_id: str | None = None,
    delay: float | timedelta | None = None,
    at: datetime | None = None,
) -> Receipt:
    """Publish from an event loop, which this never blocks; otherwise as `publish`.

    If the task is cancelled, the message may still be stored.
    """
    return await _default.get().apublish(
        topic, value, key=key, headers=headers, message_id=message_id, delay=delay, at=at
    )


async def apublish_many(
    topic: str,
    values: Iterable[Any] | AsyncIterable[Any],
    *,
    key: Callable[[Any], str | None] | None = None,
    headers: Callable[[Any], Mapping[str, str] | None] | None = None,
    message_id: Callable[[Any], str | None] | None = None,
) -> int:
    """Publish many from an event loop, which this never blocks; otherwise as `publish_many`.

    `values` may be asynchronous.
    """
    return await _default.get().apublish_many(topic, values, key=key, headers=headers, message_id=message_id)


def subscribe(
    topic: str | TopicHandle,
    *,
    group: str,
    ordering: Ordering = "key",
    retry: RetryPolicy | None = None,
    batch: int | None = None,
    atomic: bool | str = False,
    start: str = "earliest",
    time_limit: float | None = None,
    soft_time_limit: float | None = None,
    retry_on: tuple[type[BaseException], ...] = (Exception,),
    dead_on: tuple[type[BaseException], ...] = (),
) -> Callable[[_Function], _Function]:
    """Make a function the handler of a topic for a consumer group, and return it unchanged.

    `ordering`: "key" (messages of one key in publish order, also across retries), "partition", or "none".
    `retry`: how often and how late a failing message is tried again. `batch`: call the handler with an
    iterable of at most so many messages. `start`: where a new group begins: "earliest", "latest", an id, or
    an ISO time. `time_limit`, `soft_time_limit`: seconds.

    `atomic`: True or the alias of a database. The handler runs in a transaction there that also remembers the
    message, so its effect happens once. `async def` handlers cannot be atomic. They run at the same time, but
    one after the other for messages of one key.

    What the handler does decides: it returns → done; it raises → retry by `retry`, then dead letter; it
    raises bus.Reject → dead letter at once; it raises bus.Retry → retry. Exceptions of `dead_on`, and those
    not of `retry_on`, are dead letters at once.

    Raises ConfigurationError.
    """

    def register(handler: _Function) -> _Function:
        _default.subscriptions.add(
            Subscription(
                topic=topic.name if isinstance(topic, TopicHandle) else topic,
                group=group,
                handler=handler,
                ordering=ordering,
                retry=retry or RetryPolicy(),
                batch=batch,
                atomic="default" if atomic is True else (atomic or None),
                start=start,
                time_limit=time_limit,
                soft_time_limit=soft_time_limit,
                retry_on=retry_on,
                dead_on=dead_on,
            )
        )
        return handler

    return register


def publish_on_commit(
    topic: str,
    value: Any,
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    message_id: str | None = None,
    delay: float | timedelta | None = None,
    at: datetime | None = None,
    using: str | None = None,
) -> None:
    """Publish when the database transaction commits; not at all if it is rolled back; at once without one.

    The message is checked and encoded now (InvalidMessage). `using`: alias of the database. Other arguments
    as for `publish`. A failure after the commit is logged, and raised after all other on_commit hooks. The
    message is then lost, as it is if the process dies in between; use publish_in_transaction to prevent both.
    """
    _default.get().publish_on_commit(
        topic, value, key=key, headers=headers, message_id=message_id, delay=delay, at=at, using=using
    )


def publish_in_transaction(
    topic: str,
    value: Any,
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    message_id: str | None = None,
    using: str | None = None,
) -> None:
    """Write the message into the outbox, in the open database transaction; workers publish it soon after.

    Needs no Redis now. `using`: alias of the database. Other arguments as for `publish`. Raises
    InvalidMessage, UnknownTopic (neither code, nor database, nor Redis knows it) or NotInTransaction.
    """
    _default.get().publish_in_transaction(
        topic, value, key=key, headers=headers, message_id=message_id, using=using
    )
