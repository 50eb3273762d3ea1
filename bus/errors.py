"""Every error that Jitney raises, and the two that handlers raise.

BusError
├── ConfigurationError      a setting, name or declaration is wrong; nothing was done
├── UnknownTopic            no such topic
├── UnknownGroup            no such consumer group
├── NotInTransaction        publish_in_transaction was called outside of atomic(); nothing was written
├── InvalidMessage          this value, key or header cannot be published
│   └── Undecodable         this stream entry cannot be read back
├── BusUnavailable          Redis cannot be reached or cannot write now; nothing was written
│   ├── Forbidden           the Redis user may not do this (ACL); nothing was written
│   └── ReplyLost           the connection broke after the command was sent (reads, operator verbs)
├── PublishUncertain        the reply to a publish was lost: the message may or may not be stored
├── BusFull                 Redis is out of memory; nothing was written
├── BufferFull              a producer holds as much as it may; the message was not taken
├── ProducerClosed          the producer is closed; the message was not taken
├── StaleLease              another worker took the lane over; nothing was settled
├── InboxUnavailable        an atomic handler cannot begin: its database lacks the tables
├── ReadOnly                BUS["READ_ONLY"] forbids operator verbs
├── PartitionFull           the last id that there can be was given: nothing can be stored any more
└── ServerError             Redis answered with an error that Jitney does not expect
    └── ForeignData         a key holds what Jitney does not write there; nothing was changed
Retry, Reject               raised by handlers, to be tried again or to become a dead letter
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from bus.moments import delay_seconds


class BusError(Exception):
    """Base of all errors of the bus."""


class ConfigurationError(BusError, ValueError):
    """A setting, a name or a declaration is wrong. The text says what, where and how to mend it."""


class UnknownTopic(BusError, LookupError):
    """The topic is neither in Redis nor declared here."""

    def __init__(self, topic: str, hint: str = "") -> None:
        self.topic = topic
        hint = hint or "Declare it with bus.topic(...) or create it with `bus topic create`."
        super().__init__(f"There is no topic {topic!r}. {hint}")


class UnknownGroup(BusError, LookupError):
    """The consumer group does not exist on this topic."""

    def __init__(self, topic: str, group: str) -> None:
        self.topic, self.group = topic, group
        super().__init__(f"Topic {topic!r} has no consumer group {group!r}.")


class InvalidMessage(BusError, ValueError):
    """The value, key or headers cannot be published; nothing was written."""


class NotInTransaction(BusError, RuntimeError):
    """publish_in_transaction was called without a transaction, in which it could promise nothing. Nothing was
    written.
    """


class Undecodable(InvalidMessage):
    """A stream entry cannot be read as a message; its bytes are untouched in the stream."""


class BusUnavailable(BusError, ConnectionError):
    """Redis cannot be reached, or refuses writes for now. Nothing was written."""


class Forbidden(BusUnavailable):
    """The access rules of Redis (ACL) forbid this to our user. Nothing was written."""


class ReplyLost(BusUnavailable):
    """The connection broke after a command was sent: it may or may not have happened."""

    replies: Sequence[Any] = ()
    """The replies that came before, if several commands were sent at once."""


class PublishUncertain(BusError, ConnectionError):
    """The message may or may not be stored: publishing it again may store it twice."""


class BusFull(BusError, MemoryError):
    """Redis has reached maxmemory. Nothing was written; consumers go on draining."""


class BufferFull(BusError):
    """A producer with on_full="raise" has as much on its way as it may hold. The message was not taken."""


class ProducerClosed(BusError, RuntimeError):
    """The producer was closed. The message was not taken."""


class StaleLease(BusError):
    """The lane belongs to another worker now. Nothing was settled or fetched."""


class InboxUnavailable(BusError):
    """The database of an atomic handler lacks the tables, so it cannot begin. The message is not at fault."""

    begun = False
    """True if the handler had begun and raised this itself: a failure like any other."""


class ReadOnly(BusError, PermissionError):
    """BUS["READ_ONLY"] is set: operator verbs are refused here."""


class PartitionFull(BusError):
    """A message has the greatest id that a stream can have, so no message can follow. Nothing was written."""


class ServerError(BusError):
    """An error reply of the server; `code` is its first word, such as WRONGTYPE or NOGROUP."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.split(" ", 1)[0]


class ForeignData(ServerError):
    """A key of the bus holds what Jitney does not write there, or cannot read. Nothing was changed."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = "WRONGTYPE"


class Retry(Exception):
    """Raised by a handler to have this message tried again after `delay` (None: as the policy says).

    `delay`: seconds or a timedelta, at most 100 years. Less than 0 counts as 0, since a moment to wait for
    may have passed. Raises ConfigurationError for anything else; the handler has then failed with that error.
    """

    def __init__(self, reason: str = "", *, delay: float | timedelta | None = None) -> None:
        super().__init__(reason or "the handler asked for a retry")
        self.delay: float | None = None
        """The delay in seconds, or None."""
        if delay is not None:
            seconds = delay_seconds(delay)
            if seconds is None:
                raise ConfigurationError(
                    f"Retry: delay must be seconds or a timedelta, up to 100 years, not {delay!r}."
                )
            self.delay = max(0.0, seconds)


class Reject(Exception):
    """Raised by a handler for a message that can never succeed: it becomes a dead letter now."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_away(error: BaseException) -> bool:
    """Return whether this says that Redis cannot be used at all now, not only that it refuses one thing."""
    return isinstance(error, BusUnavailable) and not isinstance(error, Forbidden)
