"""Publishing on the caller's thread: one message for each call, or many."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bus.errors import BusError, ReplyLost, ServerError
from bus.format.keys import Keys
from bus.publishing import draft as drafts
from bus.publishing.draft import Draft, once_command, receipt_of
from bus.publishing.options import BulkOptions, PublishOptions
from bus.publishing.packer import Packed, Packer, Place
from bus.publishing.waves import Waves, uncertain, vanished
from bus.safety.complaints import Complaints
from bus.streams.commands import is_noscript, script
from bus.streams.connect import Client, check
from bus.streams.convoy import Convoy
from bus.streams.wire import Command, Link, pack
from bus.topics.registry import Registry
from bus.values import Receipt, TopicSpec

logger = logging.getLogger("bus.publisher")
complaints = Complaints(logger)

#: Messages in one write. A pipeline of 500 is within 2 % of one of 1,000 and answers sooner.
BATCH = 500
#: Bytes in one write, so that large messages do not pile up. Half of what a socket's buffer holds would do.
BATCH_BYTES = 1 << 20

#: Messages in one `send_once`: their fields together must stay below what Lua's unpack takes.
MAX_ONCE = 500

#: Scripts that store messages: a link that may send them by their SHA-1 has the server know them first.
SCRIPTS = ("once", "delay")


class Publisher:
    """Writes messages to their partitions. Thread-safe; nothing is ever sent twice by itself."""

    def __init__(
        self, client: Client, registry: Registry, keys: Keys, *, max_bytes: int, window: int
    ) -> None:
        """`max_bytes`: the most in one message. `window`: seconds for which a message_id is known."""
        self._client = client
        self._registry = registry
        self._keys = keys
        self._max_bytes = max_bytes
        self._window = window
        self._convoy = Convoy(client)
        self._turn = itertools.count()
        self._packers: dict[str, Packer] = {}

    # ------------------------------------------------------------------ one

    def publish(self, topic: str, value: Any, key: str | None = None) -> Receipt:
        """Store a message that has no more than a key, and return its receipt.

        Raises InvalidMessage, UnknownTopic, BusUnavailable, BusFull (nothing was written) or
        PublishUncertain (the reply was lost; with a message_id it is safe to publish again).
        """
        place, packed = self.packer(topic).pack(value, key, next(self._turn))
        reply = self._call(*place, lambda: self._convoy.call(packed))
        return Receipt(*place, reply.decode())

    def publish_with(self, topic: str, value: Any, options: PublishOptions) -> Receipt:
        """Store any message and return its receipt. Raises what `publish` raises."""
        return self.send(self.draft(topic, value, options))

    def draft(self, topic: str, value: Any, options: PublishOptions) -> Draft:
        """Check and encode a message, to be sent later by `send`; no I/O. Raises InvalidMessage."""
        return drafts.make(topic, value, options, max_bytes=self._max_bytes)

    def send(self, draft: Draft) -> Receipt:
        """Store a draft and return its receipt. Raises what `publish` raises, except InvalidMessage."""
        spec = self._registry.spec(draft.topic)
        partition = draft.partition(spec.partitions, lambda: next(self._turn))
        keys = self._keys.partition(draft.topic, partition)
        reply = self._store(
            draft.topic, partition, lambda by_text: draft.command(keys, self._window, by_text=by_text)
        )
        return receipt_of(draft.topic, partition, reply)

    def send_once(
        self, topic: str, partition: int, messages: Sequence[tuple[str, list[bytes]]], *, window: int
    ) -> list[Receipt]:
        """Store messages of one partition in their order, each at most once; all or none. One round trip.

        For callers that send again after a crash (the outbox): ids that are known are not stored a second
        time. `messages`: (message_id, stream fields), at most MAX_ONCE of them. `window`: seconds for which
        the ids are known. Raises UnknownTopic, BusUnavailable, BusFull (nothing was written) or
        PublishUncertain (send them again).
        """
        keys = self._keys.partition(topic, partition)
        once = [keys.once(message_id) for message_id, _ in messages]
        bodies = [fields for _, fields in messages]
        reply = self._store(
            topic,
            partition,
            lambda by_text: once_command(keys.stream, once, bodies, window, by_text=by_text),
        )
        return [receipt_of(topic, partition, [each]) for each in reply]

    def shorten(self, topic: str, partition: int, message_ids: Sequence[str]) -> None:
        """Shorten the time for which the server knows ids of `send_once`, to that of `publish` from now on.

        Raises BusUnavailable; they then stay known for as long as `send_once` said.
        """
        keys = self._keys.partition(topic, partition)
        self._client.pipe([("EXPIRE", keys.once(each), self._window) for each in message_ids])

    def _store(self, topic: str, partition: int, command: Callable[[bool], Command]) -> Any:
        """Return the reply to a command that may be a script; `command(by_text)` gives it by SHA-1 or in
        full.
        """

        def call() -> Any:
            try:
                return self._convoy.call(pack(command(False)))
            except ServerError as error:
                if not is_noscript(error):
                    raise
                return self._convoy.call(pack(command(True)))

        return self._call(topic, partition, call)

    def _call(self, topic: str, partition: int, call: Callable[[], Any]) -> Any:
        """Return the reply to a command that stores; send it again only if nil says that it wrote nothing."""
        reply = self._once(topic, call)
        if reply is None:
            self.mend(topic, partition, reply)
            reply = self._once(topic, call)
        if reply is None:
            raise vanished(topic)
        return reply

    @staticmethod
    def _once(topic: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ReplyLost as error:
            raise uncertain(topic, error) from error

    # ------------------------------------------------------------------ many

    def publish_many(self, topic: str, values: Iterable[Any], options: BulkOptions) -> int:
        """Store messages in their order, BATCH in a write, two writes in flight, and return how many.

        On an error, all messages before the one at fault are stored, and a note on the error says which it
        is. If it cannot be published (InvalidMessage, an error of `values`, `key`, `headers` or
        `message_id`), none after it is stored. If the server refuses it, later ones under way may be stored
        or not.
        """
        stored = 0
        try:
            for _, replies in self._waves(topic, values, options):
                stored += len(replies)
        except BusError as error:
            error.add_note(f"{stored:,} messages of this call are known to be stored; the next is at fault.")
            raise
        return stored

    def publish_iter(self, topic: str, values: Iterable[Any], options: BulkOptions) -> Iterator[Receipt]:
        """Store messages like publish_many, and yield each receipt as its reply arrives.

        It is lazy: it writes nothing before the first receipt is asked for. On an error, the message at fault
        is the one after the last receipt.
        """
        for places, replies in self._waves(topic, values, options):
            for place, reply in zip(places, replies, strict=True):
                yield receipt_of(*place, reply)

    def _waves(
        self, topic: str, values: Iterable[Any], options: BulkOptions
    ) -> Iterator[tuple[Sequence[Place], Sequence[Any]]]:
        """Yield places and replies of what is stored, in the order of the values; raise the error, if any."""
        waves = Waves(topic, self._client.borrow(), self.mend)
        try:
            if options.message_id is not None:
                self.load_scripts(waves.link)
            yield from waves.run(self._writes(topic, values, options))
        finally:
            waves.end(self._client)

    def _writes(
        self, topic: str, values: Iterable[Any], options: BulkOptions
    ) -> Iterator[tuple[list[Packed], Exception | None]]:
        """Yield what goes with one write. The last comes with the error that ended them, so all before it is
        stored.
        """
        write: list[Packed] = []
        size, turn, key = 0, self._turn, options.key
        simple = options.headers is None and options.message_id is None
        packer = self.packer(topic)
        pack, pack_any, take = packer.pack, packer.pack_any, write.append
        try:
            for value in values:
                if simple:
                    packed = pack(value, None if key is None else key(value), next(turn))
                else:
                    packed = pack_any(value, options.of(value), next(turn))
                take(packed)
                size += len(packed[1])
                if len(write) == BATCH or size > BATCH_BYTES:
                    yield write, None
                    write, size = [], 0  # before anything that can fail: what was sent must not be sent again
                    packer = self.packer(topic)
                    pack, pack_any, take = packer.pack, packer.pack_any, write.append
        except Exception as error:
            yield write, error
            return
        if write:
            yield write, None

    # ------------------------------------------------------------------ shared with the producer

    def packer(self, topic: str) -> Packer:
        """Return the packer of a topic, by its present spec. Raises UnknownTopic or BusUnavailable."""
        return self._packer_for(self._registry.spec(topic))

    def known_packer(self, topic: str) -> Packer | None:
        """Return the packer of a topic, by the spec known last; None if nobody asked for it yet. No I/O."""
        spec = self._registry.known(topic)
        return None if spec is None else self._packer_for(spec)

    def refresh(self, topics: Iterable[str]) -> None:
        """Ask again for specs that are too old, until one cannot be read.

        Then the known specs stay. A message for a topic that is gone is refused when it is sent.
        """
        try:
            for topic in topics:
                self._registry.spec(topic)
        except Exception as error:
            complaints.trouble(error, "A spec cannot be read again: %s", error)

    def _packer_for(self, spec: TopicSpec) -> Packer:
        packer = self._packers.get(spec.name)
        if packer is None or packer.spec is not spec:
            packer = Packer(spec, self._keys, max_bytes=self._max_bytes, window=self._window)
            self._packers[spec.name] = packer
        return packer

    def load_scripts(self, link: Link) -> None:
        """Load the scripts that store messages into the server. Raises BusUnavailable or ServerError."""
        for reply in link.pipe([("SCRIPT", "LOAD", script(name).text) for name in SCRIPTS]):
            check(reply)

    def mend(self, topic: str, partition: int, reply: Any) -> None:
        """Mend why the server wrote nothing, so that the same command can succeed: load the script, or make
        the stream again.

        Raises BusUnavailable, and UnknownTopic if the stream is missing because the topic was deleted.
        """
        if is_noscript(reply):
            link = self._client.borrow()
            try:
                self.load_scripts(link)
            finally:
                self._client.give_back(link)
        else:
            self._registry.forget_cache()
            self._registry.restore_partition(topic, partition)
