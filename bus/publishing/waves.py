"""The writes of publish_many, two under way on one link, also where the server refuses messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bus.errors import BusUnavailable, PublishUncertain, ReplyLost, ServerError, UnknownTopic
from bus.publishing.packer import Packed, PartitionRef
from bus.streams.commands import is_noscript
from bus.streams.connect import Client, check
from bus.streams.wire import Link

#: `Publisher.mend`: makes right why the server wrote nothing, by topic, partition and reply.
Mend = Callable[[str, int, Any], None]


class Waves:
    """The writes of one call of publish_many, two under way on one link."""

    def __init__(self, topic: str, link: Link, mend: Mend) -> None:
        self._mend = mend
        self._topic = topic
        self.link = link
        self._flying: deque[list[Packed]] = deque()

    def run(
        self, writes: Iterator[tuple[list[Packed], Exception | None]]
    ) -> Iterator[tuple[Sequence[PartitionRef], Sequence[Any]]]:
        """Send the writes; yield the partitions of stored messages and the replies to them, in order.

        The error that came with the last write is raised when all before it is stored.
        """
        failure: Exception | None = None
        for write, error in writes:
            failure = error
            if write:
                self._send(write)
            if len(self._flying) == 2:
                yield from self._land()
        while self._flying:
            yield from self._land()
        if failure is not None:
            raise failure

    def end(self, client: Client) -> None:
        """Give the link back to its client."""
        if self.link.pending:
            self.link.close()
        client.give_back(self.link)

    def _send(self, write: list[Packed]) -> None:
        try:
            self.link.send(b"".join([packed for _, packed in write]), len(write))
        except ReplyLost as error:
            raise uncertain(self._topic, error) from error
        self._flying.append(write)

    def _land(self) -> Iterator[tuple[Sequence[PartitionRef], Sequence[Any]]]:
        """Yield the partitions of the oldest write under way, and the replies to it."""
        write = self._flying.popleft()
        try:
            replies = self.link.receive_many(len(write))
        except ReplyLost as error:
            got = list(error.replies)
            yield from self._check(write[: len(got)], got)
            raise uncertain(self._topic, error) from error
        yield from self._check(write, replies)

    def _check(
        self, write: list[Packed], replies: list[Any]
    ) -> Iterator[tuple[Sequence[PartitionRef], Sequence[Any]]]:
        if any(reply is None or reply.__class__ is ServerError for reply in replies):
            yield from self._mended(write, replies)
        else:
            yield [ref for ref, _ in write], replies

    def _mended(
        self, write: list[Packed], replies: list[Any]
    ) -> Iterator[tuple[Sequence[PartitionRef], Sequence[Any]]]:
        """Mend why messages were refused, and send them again.

        First all that is under way must be answered. Otherwise later messages of a key would overtake those
        that were refused.
        """
        broken: BusUnavailable | None = None
        for later in self._flying:
            write = write + later
            try:
                replies = replies + self.link.receive_many(len(later))
            except BusUnavailable as error:
                broken = error
                replies = replies + list(getattr(error, "replies", ()))
                break
        self._flying.clear()
        # On a broken connection nothing more is sent: what is known is told, up to the first that is not.
        again = set() if broken else resendable([ref for ref, _ in write], replies)
        for index, ((ref, packed), reply) in enumerate(zip(write, replies, strict=False)):
            if index in again:
                reply = self._send_again(ref, packed, reply)  # noqa: PLW2901  it is the reply that counts
            if reply is None:
                raise stream_gone(self._topic)
            yield [ref], [check(reply)]
        if broken is not None:
            raise uncertain(self._topic, broken) from broken

    def _send_again(self, ref: PartitionRef, packed: bytes, reply: Any) -> Any:
        self._mend(*ref, reply)
        try:
            self.link.send(packed, 1)
            return self.link.receive()
        except ReplyLost as error:
            raise uncertain(self._topic, error) from error


def resendable(refs: Sequence[Any], replies: Sequence[Any]) -> set[int]:
    """Return the indexes of the messages that can be sent again without a break in the order.

    These were refused for a reason that can be mended (nothing was written), and nothing of the same
    partition was stored after them.
    """
    again: set[int] = set()
    closed: set[Any] = set()
    for index in range(len(replies) - 1, -1, -1):
        reply = replies[index]
        if reply is None or is_noscript(reply):
            if refs[index] not in closed:
                again.add(index)
        elif not isinstance(reply, ServerError):
            closed.add(refs[index])
    return again


def uncertain(topic: str, error: BaseException) -> PublishUncertain:
    """Return the error for a message whose reply was lost."""
    return PublishUncertain(
        f"The reply to a publish to {topic!r} was lost, so the message may or may not be stored: {error} "
        "A message with a message_id can safely be published again."
    )


def stream_gone(topic: str) -> UnknownTopic:
    """Return the error for a message whose stream was made again, and is gone again."""
    return UnknownTopic(topic, "Its stream is gone again while the message is being published.")
