"""Publishing in the caller's thread: one message, or many."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bus.errors import BusError, ReplyLost, ServerError
from bus.format.keys import Keys
from bus.publishing import draft as drafts
from bus.publishing.draft import Draft, dedupe_command, receipt_of
from bus.publishing.options import BulkOptions, PublishOptions
from bus.publishing.packer import Packed, Packer, PartitionRef
from bus.publishing.waves import Waves, stream_gone, uncertain
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
MESSAGES_A_WRITE = 500
#: Bytes in one write, so that large messages do not pile up. Half of what a socket's buffer holds would do.
BYTES_A_WRITE = 1 << 20

#: The most messages in one `send_deduped`: their fields together must stay below what Lua's unpack takes.
MAX_DEDUPED = 500

#: Scripts that store messages. The server must know them before a link sends them by their SHA-1.
SCRIPTS = ("once", "delay")


class Publisher:
    """Writes messages to their partitions. Thread-safe. It never sends a message twice by itself."""

    def __init__(
        self, client: Client, registry: Registry, keys: Keys, *, max_bytes: int, window: int
    ) -> None:
        """`max_bytes`: the most in one message. `window`: seconds for which the server knows a message_id."""
        self._client = client
        self._registry = registry
        self._keys = keys
        self._max_bytes = max_bytes
        self._window = window
        self._convoy = Convoy(client)
        self._rota = itertools.count()
        self._packers: dict[str, Packer] = {}

    # ------------------------------------------------------------------ one

    def publish(self, topic: str, value: Any, key: str | None = None) -> Receipt:
        """Store a message that has no more than a key, and return its receipt.

        Raises InvalidMessage, UnknownTopic, BusUnavailable, BusFull (nothing was written) or
        PublishUncertain (the reply was lost; with a message_id it is safe to publish again).
        """
        ref, packed = self.packer(topic).pack(value, key, next(self._rota))
        reply = self._call(*ref, lambda: self._convoy.call(packed))
        return Receipt(*ref, reply.decode())

    def publish_with(self, topic: str, value: Any, options: PublishOptions) -> Receipt:
        """Store any message and return its receipt. Raises what `publish` raises."""
        return self.send(self.draft(topic, value, options))

    def draft(self, topic: str, value: Any, options: PublishOptions) -> Draft:
        """Check and encode a message, for `send`; no I/O. Raises InvalidMessage."""
        return drafts.make(topic, value, options, max_bytes=self._max_bytes)

    def send(self, draft: Draft) -> Receipt:
        """Store a draft and return its receipt. Raises what `publish` raises, except InvalidMessage."""
        spec = self._registry.spec(draft.topic)
        partition = draft.partition(spec.partitions, lambda: next(self._rota))
        keys = self._keys.partition(draft.topic, partition)
        reply = self._store(
            draft.topic, partition, lambda by_text: draft.command(keys, self._window, by_text=by_text)
        )
        return receipt_of(draft.topic, partition, reply)

    def send_deduped(
        self, topic: str, partition: int, messages: Sequence[tuple[str, list[bytes]]], *, window: int
    ) -> list[Receipt]:
        """Store messages of one partition in their order, all or none, in one round trip.

        A message whose id the server knows is not stored again, so a caller (the outbox) can repeat the call
        after a crash. `messages`: (message_id, stream fields), at most MAX_DEDUPED. `window`: seconds for
        which the server knows the ids. Raises UnknownTopic, BusUnavailable, BusFull (nothing was written) or
        PublishUncertain (send them again).
        """
        keys = self._keys.partition(topic, partition)
        id_keys = [keys.once(message_id) for message_id, _ in messages]
        bodies = [fields for _, fields in messages]
        reply = self._store(
            topic,
            partition,
            lambda by_text: dedupe_command(keys.stream, id_keys, bodies, window, by_text=by_text),
        )
        return [receipt_of(topic, partition, [stored]) for stored in reply]

    def shorten(self, topic: str, partition: int, message_ids: Sequence[str]) -> None:
        """Have the server forget ids of `send_deduped` after the dedupe window, counted from now.

        Raises BusUnavailable; then it knows them for as long as `send_deduped` said.
        """
        keys = self._keys.partition(topic, partition)
        self._client.pipe([("EXPIRE", keys.once(message_id), self._window) for message_id in message_ids])

    def _store(self, topic: str, partition: int, command: Callable[[bool], Command]) -> Any:
        """Send a command that may be a script, and return its reply.

        `command(by_text)` returns the command, with the SHA-1 of the script or its text.
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
        """Make a call that stores messages and return its reply.

        It is made again only if the reply is nil: the stream was missing, and nothing was written.
        """
        reply = self._attempt(topic, call)
        if reply is None:
            self.mend(topic, partition, reply)
            reply = self._attempt(topic, call)
        if reply is None:
            raise stream_gone(topic)
        return reply

    @staticmethod
    def _attempt(topic: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ReplyLost as error:
            raise uncertain(topic, error) from error

    # ------------------------------------------------------------------ many

    def publish_many(self, topic: str, values: Iterable[Any], options: BulkOptions) -> int:
        """Store messages in their order and return how many. Two writes of MESSAGES_A_WRITE are under way.

        On an error, all messages before the one at fault are stored, and a note on the error says which it
        is. If it cannot be published (InvalidMessage, an error of `values` or of the options' functions),
        none after it is stored. If the server refuses it, later ones under way may be stored or not.
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
        """Store messages as publish_many does, and yield each receipt when its reply arrives.

        It writes nothing before you ask for the first receipt. On an error, the message at fault is the one
        after the last receipt.
        """
        for refs, replies in self._waves(topic, values, options):
            for ref, reply in zip(refs, replies, strict=True):
                yield receipt_of(*ref, reply)

    def _waves(
        self, topic: str, values: Iterable[Any], options: BulkOptions
    ) -> Iterator[tuple[Sequence[PartitionRef], Sequence[Any]]]:
        """Yield partitions of stored messages and the replies, in order; then raise the error, if any."""
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
        """Yield the messages of each write. The last write comes with the error that ended them, if any."""
        write: list[Packed] = []
        size, rota, key = 0, self._rota, options.key
        simple = options.headers is None and options.message_id is None
        packer = self.packer(topic)
        pack, pack_any, take = packer.pack, packer.pack_any, write.append
        try:
            for value in values:
                if simple:
                    packed = pack(value, None if key is None else key(value), next(rota))
                else:
                    packed = pack_any(value, options.of(value), next(rota))
                take(packed)
                size += len(packed[1])
                if len(write) == MESSAGES_A_WRITE or size > BYTES_A_WRITE:
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
        """Return the packer of a topic by the spec that was read last; None if none was. No I/O."""
        spec = self._registry.known(topic)
        return None if spec is None else self._packer_for(spec)

    def refresh(self, topics: Iterable[str]) -> None:
        """Read specs again that are too old. Where that fails, the old specs stay.

        The server refuses a message for a topic that is gone.
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
        """Load the scripts, or make the stream again: after this reply the same command can then succeed.

        `reply`: NOSCRIPT, or nil for a missing stream. Raises BusUnavailable, and UnknownTopic if the topic
        was deleted.
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
