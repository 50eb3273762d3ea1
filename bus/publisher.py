"""One message, and many."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from bus import codec
from bus import draft as drafts
from bus.draft import Draft, Headers, once_command, receipt_of
from bus.errors import BusError, BusUnavailable, PublishUncertain, ReplyLost, ServerError, UnknownTopic
from bus.keys import Keys
from bus.partition import partition_of
from bus.registry import Registry
from bus.streams.commands import add_command, is_noscript
from bus.streams.connect import Client, error_of
from bus.streams.wire import Command, Link, pack_all
from bus.values import Receipt, TopicSpec

#: Messages in one write. A pipeline of 500 is within 2 % of one of 1,000 and answers sooner.
BATCH = 500

#: Messages in one `send_once`: their fields together must stay below what Lua's unpack takes.
MAX_ONCE = 500

#: What one write holds: (partition, its XADD) of each message.
Batch = list[tuple[int, Command]]


class Publisher:
    """Writes messages to their partitions. Thread-safe; nothing is ever sent twice by itself."""

    def __init__(
        self, client: Client, registry: Registry, keys: Keys, *, max_bytes: int, window: int
    ) -> None:
        """`max_bytes`: of one message. `window`: seconds for which a message_id is known."""
        self._client = client
        self._registry = registry
        self._keys = keys
        self._max_bytes = max_bytes
        self._window = window
        self._turn = itertools.count()

    def publish(
        self,
        topic: str,
        value: Any,
        key: str | None = None,
        headers: Headers | None = None,
        *,
        message_id: str | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
    ) -> Receipt:
        """Store one message and return its receipt.

        Raises InvalidMessage, UnknownTopic, BusUnavailable, BusFull (nothing was written) or
        PublishUncertain (the reply was lost; with a message_id it is safe to publish again).
        """
        return self.send(self.draft(topic, value, key, headers, message_id=message_id, delay=delay, at=at))

    def draft(
        self,
        topic: str,
        value: Any,
        key: str | None = None,
        headers: Headers | None = None,
        *,
        message_id: str | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
    ) -> Draft:
        """Check and encode a message, to be sent later by `send`; no I/O. Raises InvalidMessage."""
        return drafts.make(
            topic, value, key, headers, message_id=message_id, delay=delay, at=at, max_bytes=self._max_bytes
        )

    def send(self, draft: Draft) -> Receipt:
        """Store a draft and return its receipt. Raises what `publish` raises, but for InvalidMessage."""
        spec = self._registry.spec(draft.topic)
        partition = draft.partition(spec.partitions, self._next)
        keys = self._keys.partition(draft.topic, partition)
        reply = self._store(
            draft.topic, partition, lambda by_text: draft.command(keys, self._window, by_text=by_text)
        )
        return receipt_of(draft.topic, partition, reply)

    def send_once(
        self, topic: str, partition: int, messages: Sequence[tuple[str, list[bytes]]]
    ) -> list[Receipt]:
        """Store messages of one partition in their order, each at most once; all or none.

        `messages`: (message_id, stream fields), at most MAX_ONCE of them. One round trip. For those that
        send again after a crash (the outbox): ids that are known are not stored a second time. Raises
        UnknownTopic, BusUnavailable, BusFull (nothing was written) or PublishUncertain (send them again).
        """
        keys = self._keys.partition(topic, partition)
        once = [keys.once(message_id) for message_id, _ in messages]
        bodies = [fields for _, fields in messages]
        reply = self._store(
            topic,
            partition,
            lambda by_text: once_command(keys.stream, once, bodies, self._window, by_text=by_text),
        )
        return [receipt_of(topic, partition, [each]) for each in reply]

    def publish_many(
        self,
        topic: str,
        values: Iterable[Any],
        key: Callable[[Any], str | None] | None = None,
        headers: Callable[[Any], Headers | None] | None = None,
    ) -> Iterator[Receipt]:
        """Store messages in their order, BATCH in a write, two writes in flight; yield their receipts.

        Lazy: nothing is written before the first receipt is asked for. On an error the message at
        fault is the one after the last receipt. If it cannot be published (InvalidMessage, an error of
        `values`, `key` or `headers`) all before it are stored and none after it; if the server refuses
        it, later ones under way may be stored or not.
        """
        spec = self._registry.spec(topic)
        link = self._client.borrow()
        try:
            yield from self._stream_batches(link, spec, values, key, headers)
        except ReplyLost as error:
            raise self._uncertain(topic, error) from error
        finally:
            if link.pending:
                link.close()
            self._client.give_back(link)

    def _stream_batches(
        self,
        link: Link,
        spec: TopicSpec,
        values: Iterable[Any],
        key: Callable[[Any], str | None] | None,
        headers: Callable[[Any], Headers | None] | None,
    ) -> Iterator[Receipt]:
        flying: deque[Batch] = deque()
        failure: Exception | None = None
        for batch, error in self._batches(spec, values, key, headers):
            failure = error
            link.send(pack_all(command for _, command in batch), len(batch))
            flying.append(batch)
            if len(flying) == 2:
                yield from self._receipts(link, spec, flying)
        while flying:
            yield from self._receipts(link, spec, flying)
        if failure is not None:
            raise failure

    def _receipts(self, link: Link, spec: TopicSpec, flying: deque[Batch]) -> Iterator[Receipt]:
        """The receipts of the oldest write under way."""
        batch = flying.popleft()
        for index, (partition, _command) in enumerate(batch):
            reply = link.receive()
            if reply is None:
                yield from self._receipts_after_loss(link, spec, batch[index:], flying)
                return
            yield self._receipt(spec, partition, reply)

    def _receipts_after_loss(
        self, link: Link, spec: TopicSpec, refused: Batch, flying: deque[Batch]
    ) -> Iterator[Receipt]:
        """A stream has vanished. What was sent meanwhile must be answered before it is made again, or later
        messages of a key would overtake those that were refused."""
        rest = [*refused, *(item for batch in flying for item in batch)]
        flying.clear()
        replies = [None, *(link.receive() for _ in rest[1:])]
        for (partition, command), reply in zip(rest, replies, strict=True):
            added = self._add(spec, partition, command) if reply is None else reply
            yield self._receipt(spec, partition, added)

    def _batches(
        self,
        spec: TopicSpec,
        values: Iterable[Any],
        key: Callable[[Any], str | None] | None,
        headers: Callable[[Any], Headers | None] | None,
    ) -> Iterator[tuple[Batch, Exception | None]]:
        """The writes; the last one with the error that ended them, so that what came before it is stored."""
        batch: Batch = []
        streams = [self._keys.partition(spec.name, number).stream for number in range(spec.partitions)]
        try:
            for value in values:
                name = key(value) if key else None
                fields = codec.encode(spec.name, value, name, headers(value) if headers else None,
                                      max_bytes=self._max_bytes)  # fmt: skip
                partition = self._partition(spec, name)
                batch.append((partition, add_command(streams[partition], fields)))
                if len(batch) == BATCH:
                    yield batch, None
                    batch = []
        except Exception as error:
            yield batch, error
            return
        if batch:
            yield batch, None

    def _store(self, topic: str, partition: int, command: Callable[[bool], Command]) -> Any:
        """The reply to a command that stores; `command` is asked for it with whole scripts where need be."""
        try:
            reply = self._call_script(command)
            if reply is None:
                # The stream has vanished and nothing was written.
                self._registry.forget_cache()
                self._registry.restore_partition(topic, partition)
                reply = self._call_script(command)
        except ReplyLost as error:
            raise self._uncertain(topic, error) from error
        if reply is None:
            raise UnknownTopic(topic, "Its stream vanished again while the message was being published.")
        return reply

    def _call_script(self, command: Callable[[bool], Command]) -> Any:
        try:
            return self._client.call(*command(False))
        except ServerError as error:
            if not is_noscript(error):
                raise
            return self._client.call(*command(True))

    def _next(self) -> int:
        return next(self._turn)

    def _partition(self, spec: TopicSpec, key: str | None) -> int:
        if spec.partitions == 1:
            return 0
        if key is None:
            return next(self._turn) % spec.partitions
        return partition_of(key, spec.partitions)

    def _add(self, spec: TopicSpec, partition: int, command: Command) -> bytes:
        try:
            reply = self._client.call(*command)
        except ReplyLost as error:
            raise self._uncertain(spec.name, error) from error
        return reply if reply is not None else self._add_restored(spec, partition, command)

    def _add_restored(self, spec: TopicSpec, partition: int, command: Command) -> bytes:
        # XADD NOMKSTREAM answered nil: the stream has vanished and nothing was written.
        self._registry.forget_cache()
        self._registry.restore_partition(spec.name, partition)
        try:
            reply = self._client.call(*command)
        except ReplyLost as error:
            raise self._uncertain(spec.name, error) from error
        if reply is None:
            raise UnknownTopic(spec.name, "Its stream vanished again while the message was being published.")
        return bytes(reply)

    @staticmethod
    def _receipt(spec: TopicSpec, partition: int, reply: Any) -> Receipt:
        if isinstance(reply, ServerError):
            raise error_of(reply)
        return Receipt(spec.name, partition, reply.decode())

    @staticmethod
    def _uncertain(topic: str, error: BusUnavailable) -> BusError:
        return PublishUncertain(
            f"The reply to a publish to {topic!r} was lost, so the message may or may not be stored: {error} "
            "A message with a message_id can safely be published again."
        )
