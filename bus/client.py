"""`Bus`: one bus, with all that you can do on it. The functions of module `bus` use the default bus."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from bus.conf import Settings, masking
from bus.durations import parse_duration
from bus.format.keys import Keys
from bus.publishing.asynchronous import AsyncPublisher
from bus.publishing.options import BulkOptions, PublishOptions
from bus.publishing.publisher import Publisher
from bus.streams.connect import Client, Endpoint
from bus.streams.url import Url
from bus.topics.declared import Declared
from bus.topics.registry import Registry
from bus.values import Receipt, TopicSpec


class Bus:
    """A bus on one Redis. It connects at the first call. Safe across threads and forks."""

    def __init__(
        self,
        url: str | Settings,
        *,
        autostart: bool = False,
        declared: Declared | None = None,
        **settings: Any,
    ) -> None:
        """`url`: a server URL with further settings by keyword (see bus.conf.Settings), or Settings.

        `autostart`: start the server of an embedded:// URL if it does not run.
        `declared`: the table of declared topics, where several buses share one.
        Raises ConfigurationError.
        """
        if not isinstance(url, Settings):
            # A traceback may show what this frame holds.
            url, settings = (Url(url) if isinstance(url, str) else url), masking(settings)
        self.settings = url if isinstance(url, Settings) else Settings(url=url, **settings)
        self.keys = Keys(self.settings.prefix)
        self.declared = declared if declared is not None else Declared()
        self._autostart = autostart

    @cached_property
    def endpoint(self) -> Endpoint:
        """The server of this bus."""
        return Endpoint(self.settings.address, timeout=self.settings.timeout, autostart=self._autostart)

    @cached_property
    def client(self) -> Client:
        """Calls to the server, over a pool of connections."""
        return Client(self.endpoint)

    @cached_property
    def registry(self) -> Registry:
        """The topics and groups in Redis."""
        return Registry(self.client, self.keys, self.declared)

    @cached_property
    def publisher(self) -> Publisher:
        """Publishes in the caller's thread."""
        return Publisher(
            self.client,
            self.registry,
            self.keys,
            max_bytes=self.settings.max_message_bytes,
            window=self.settings.dedupe_window,
        )

    @cached_property
    def async_publisher(self) -> AsyncPublisher:
        """Publishes from event loops."""
        return AsyncPublisher(self)

    def topic(
        self, name: str, *, partitions: int = 1, retention: str | timedelta | float | None = None
    ) -> TopicHandle:
        """Declare a topic and return its handle. Opens no connection. Raises ConfigurationError."""
        spec = TopicSpec(name=name, partitions=partitions, retention=parse_duration(retention))
        self.declared.add(spec)
        return TopicHandle(name, lambda: self)

    def publish(
        self,
        topic: str,
        value: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
    ) -> Receipt:
        """Store one message and return its receipt; bus.publish says more of the arguments.

        `value`: JSON or bytes. `delay`: seconds or a timedelta. `at`: an aware datetime. Raises
        InvalidMessage, UnknownTopic, BusUnavailable or BusFull (nothing was written), or PublishUncertain
        (the reply was lost).
        """
        if headers is None and message_id is None and delay is None and at is None:
            return self.publisher.publish(topic, value, key)  # the hot path: without options
        return self.publisher.publish_with(topic, value, PublishOptions(key, headers, message_id, delay, at))

    def publish_many(
        self,
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
        return self.publisher.publish_many(topic, values, BulkOptions(key, headers, message_id))

    def publish_iter(
        self,
        topic: str,
        values: Iterable[Any],
        *,
        key: Callable[[Any], str | None] | None = None,
        headers: Callable[[Any], Mapping[str, str] | None] | None = None,
        message_id: Callable[[Any], str | None] | None = None,
    ) -> Iterator[Receipt]:
        """Store messages as publish_many does, and yield each receipt when its reply arrives.

        It writes nothing before you ask for the first receipt. On an error, the message at fault is the one
        after the last receipt.
        """
        return self.publisher.publish_iter(topic, values, BulkOptions(key, headers, message_id))

    async def apublish(
        self,
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
        options = PublishOptions(key, headers, message_id, delay, at)
        return await self.async_publisher.publish(topic, value, options)

    async def apublish_many(
        self,
        topic: str,
        values: Iterable[Any] | AsyncIterable[Any],
        *,
        key: Callable[[Any], str | None] | None = None,
        headers: Callable[[Any], Mapping[str, str] | None] | None = None,
        message_id: Callable[[Any], str | None] | None = None,
    ) -> int:
        """Publish many from an event loop, which this never blocks; `values` may be asynchronous."""
        options = BulkOptions(key, headers, message_id)
        return await self.async_publisher.publish_many(topic, values, options)

    def close(self) -> None:
        """Write what apublish has buffered, and close idle connections. You can use the bus again."""
        asynchronous = self.__dict__.pop("async_publisher", None)
        try:
            if asynchronous is not None:
                asynchronous.close()
        finally:
            self.client.close()

    # ------------------------------------------------------------------ with the database

    def publish_on_commit(
        self,
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
        """Publish when the database transaction commits; at once without one. Needs Django.

        `using`: alias of the database. Raises InvalidMessage now. A failure after the commit is logged, and
        raised after all other on_commit hooks; the message is lost then.
        """
        from bus.transactions.on_commit import send_on_commit

        options = PublishOptions(key, headers, message_id, delay, at)
        send_on_commit(self.publisher, self.publisher.draft(topic, value, options), using)

    def publish_in_transaction(
        self,
        topic: str,
        value: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
        using: str | None = None,
    ) -> None:
        """Write a message into the outbox, in the open transaction; workers publish it soon after.

        Needs Django. `using`: alias of the database. Raises InvalidMessage, UnknownTopic or NotInTransaction.
        """
        from bus.transactions.outbox import write

        write(self, topic, value, PublishOptions(key, headers, message_id), using)


@dataclass(frozen=True, slots=True)
class TopicHandle:
    """A declared topic, and all ways to publish to it."""

    name: str
    get_bus: Callable[[], Bus]
    """Returns the bus. It is called at each use, so that a handle made at import follows the settings."""

    def publish(
        self,
        value: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
    ) -> Receipt:
        """Store one message in this topic and return its receipt; bus.publish says more of the arguments.

        `value`: JSON or bytes. `delay`: seconds or a timedelta. `at`: an aware datetime. Raises
        InvalidMessage, UnknownTopic, BusUnavailable, BusFull or PublishUncertain.
        """
        return self.get_bus().publish(
            self.name, value, key=key, headers=headers, message_id=message_id, delay=delay, at=at
        )

    def publish_many(
        self,
        values: Iterable[Any],
        *,
        key: Callable[[Any], str | None] | None = None,
        headers: Callable[[Any], Mapping[str, str] | None] | None = None,
        message_id: Callable[[Any], str | None] | None = None,
    ) -> int:
        """Store messages in this topic in their order and return how many; see bus.publish_many.

        `key`, `headers` and `message_id` are called with each value. Raises what `publish` raises.
        """
        return self.get_bus().publish_many(self.name, values, key=key, headers=headers, message_id=message_id)

    async def apublish(
        self,
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
        return await self.get_bus().apublish(
            self.name, value, key=key, headers=headers, message_id=message_id, delay=delay, at=at
        )

    async def apublish_many(
        self,
        values: Iterable[Any] | AsyncIterable[Any],
        *,
        key: Callable[[Any], str | None] | None = None,
        headers: Callable[[Any], Mapping[str, str] | None] | None = None,
        message_id: Callable[[Any], str | None] | None = None,
    ) -> int:
        """Publish many from an event loop, which this never blocks; `values` may be asynchronous."""
        return await self.get_bus().apublish_many(
            self.name, values, key=key, headers=headers, message_id=message_id
        )

    def publish_on_commit(
        self,
        value: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        using: str | None = None,
    ) -> None:
        """Publish to this topic when the database transaction commits; see bus.publish_on_commit.

        `using`: alias of the database. Raises InvalidMessage now.
        """
        self.get_bus().publish_on_commit(
            self.name, value, key=key, headers=headers, message_id=message_id, delay=delay, at=at, using=using
        )

    def publish_in_transaction(
        self,
        value: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
        using: str | None = None,
    ) -> None:
        """Write a message for this topic into the outbox; see bus.publish_in_transaction.

        `using`: alias of the database. Raises InvalidMessage, UnknownTopic or NotInTransaction.
        """
        self.get_bus().publish_in_transaction(
            self.name, value, key=key, headers=headers, message_id=message_id, using=using
        )
