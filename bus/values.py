"""The values that all other modules use, mostly frozen. They need only the standard library."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bus.errors import ConfigurationError
from bus.moments import moment

Ordering = Literal["key", "partition", "none"]
ORDERINGS: tuple[Ordering, ...] = ("key", "partition", "none")

#: The Redis Cluster has 16,384 slots; 1,024 partitions keep every page and every
#: worker's watch list bounded, and are far above what one Redis server can feed.
MAX_PARTITIONS = 1024

_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_ID = re.compile(r"(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,19})")


def is_name(name: object) -> bool:
    """Return whether this can name a topic, group or prefix."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_name(kind: str, name: object) -> str:
    """Return `name` if it can name a topic, group or prefix. Raises ConfigurationError."""
    if not isinstance(name, str) or not is_name(name):
        raise ConfigurationError(
            f"{kind} {name!r} is not a valid name: use 1 to 100 letters, digits, '.', '_' or '-'."
        )
    return name


def check_new_name(kind: str, name: object) -> str:
    """Return `name` if a new topic or group may have it. Raises ConfigurationError, also for `.` and `..`."""
    checked = check_name(kind, name)
    if checked in (".", ".."):
        raise ConfigurationError(
            f"{kind} {checked!r} cannot be created: '.' and '..' stand for folders in addresses, so it would "
            "have no page. Use another name."
        )
    return checked


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic: its name, its number of partitions, and how long settled messages are kept."""

    name: str
    partitions: int = 1
    retention: timedelta | None = None
    """Messages that are older are trimmed when every group has settled them; None keeps them for ever."""
    rest: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Fields that a newer version has added to its record in Redis. They are kept and ignored."""

    def __post_init__(self) -> None:
        check_name("Topic", self.name)
        count = self.partitions
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_PARTITIONS:
            raise ConfigurationError(
                f"Topic {self.name!r}: partitions must be a whole number from 1 to "
                f"{MAX_PARTITIONS}, not {count!r}."
            )


@dataclass(frozen=True, slots=True)
class Receipt:
    """The proof that Redis has stored a message. `duplicate`: it had stored the same `message_id` before."""

    topic: str
    partition: int
    id: str
    duplicate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when a failing message is tried again. All times are in seconds."""

    attempts: int = 5
    """All tries, the first one included. After the last one the message is a dead letter."""
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 600.0
    jitter: float = 0.1
    """Each delay is drawn from `delay ± jitter·delay`, so that failures do not come back in step."""

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise ConfigurationError(f"RetryPolicy.attempts must be 1 or more, not {self.attempts!r}.")
        numbers = (self.delay, self.factor, self.max_delay, self.jitter)
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers) or (
            self.delay < 0 or self.max_delay < 0 or self.factor < 1 or not 0 <= self.jitter <= 1
        ):
            raise ConfigurationError(
                "RetryPolicy needs delay ≥ 0, max_delay ≥ 0, factor ≥ 1 and 0 ≤ jitter ≤ 1."
            )

    def delay_after(self, attempt: int, draw: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait after failed attempt number `attempt`, from 1."""
        try:
            base: float = min(self.max_delay, self.delay * float(self.factor) ** (attempt - 1))
        except OverflowError:
            base = self.max_delay if self.delay else 0.0
        return max(0.0, base * (1 + self.jitter * (2 * draw() - 1)))


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a partition: `earliest`, `latest`, an exact message `id`, or a point in time."""

    kind: Literal["earliest", "latest", "id", "time"]
    value: str = ""

    @classmethod
    def parse(cls, text: str | datetime | Position) -> Position:
        """Read `"earliest"`, `"latest"`, `"1700000000000-0"`, an aware datetime or its ISO form.

        Raises ConfigurationError.
        """
        if isinstance(text, Position):
            return text
        if isinstance(text, datetime):
            return cls._at(text)
        if text in ("earliest", "latest"):
            return cls(text)  # type: ignore[arg-type]  # narrowed by the line above
        if isinstance(text, str) and re.fullmatch(r"\d{1,20}(-\d{1,20})?", text, re.ASCII):
            return cls("id", _checked_id(text))
        try:
            moment = datetime.fromisoformat(text)
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"{text!r} is not a position: use 'earliest', 'latest', a message id or a time."
            ) from None
        return cls._at(moment)

    @classmethod
    def _at(cls, moment: datetime) -> Position:
        if moment.tzinfo is None:
            raise ConfigurationError(
                f"{moment.isoformat()!r} has no time zone; a position needs one: '2030-01-31T12:00+01:00'."
            )
        ms = int(moment.timestamp() * 1000)
        return cls("time", str(ms)) if ms > 0 else cls("earliest")


Decoded = tuple[Any, str | None, Mapping[str, str] | None]
"""The value, key and headers of a message. Headers are None if it has none, or nobody has read them."""


class Source(NamedTuple):
    """What the messages of one fetch share. Each holds only this, so it costs less to make and to free."""

    topic: str
    partition: int
    decode: Callable[[list[bytes]], Decoded]
    """Decodes value, key and headers from the fields, when one of them is first read."""
    prove: Callable[[], bool] | None
    era: str


class Message:
    """One message of a topic, as a handler gets it. It is decoded when first read, or a little before."""

    __slots__ = ("_attempt", "_fields", "_id", "_source", "_value")

    # They cannot be changed: a message is settled under these names when its handler has ended. C code reads
    # them, since a handler may ask for them each time.
    if TYPE_CHECKING:

        @property
        def topic(self) -> str: ...
        @property
        def partition(self) -> int: ...
        @property
        def id(self) -> str: ...
        @property
        def attempt(self) -> int: ...
        @property
        def _era(self) -> str: ...
        @property
        def _prove(self) -> Callable[[], bool] | None: ...

    else:
        topic = property(attrgetter("_source.topic"), doc="The name of its topic.")
        partition = property(attrgetter("_source.partition"), doc="The number of its partition.")
        _era, _prove = property(attrgetter("_source.era")), property(attrgetter("_source.prove"))
        id = property(attrgetter("_id"), doc="The id of its stream entry.")
        attempt = property(attrgetter("_attempt"), doc="Which attempt this is, from 1.")

    def __init__(
        self,
        topic: str,
        partition: int,
        id: str,
        fields: list[bytes],
        decode: Callable[[list[bytes]], Decoded],
        attempt: int = 1,
        prove: Callable[[], bool] | None = None,
        era: str = "",
    ) -> None:
        """`decode`: decodes value, key and headers from the fields, when one of them is first read."""
        self._source = Source(topic, partition, decode, prove, era)
        self._id = id
        self._attempt = attempt
        self._fields = fields
        self._value: Decoded | None = None

    @classmethod
    def several(cls, source: Source, entries: Iterable[Sequence[Any]], unless: bytes) -> list[Message] | None:
        """Make messages of entries (id, fields) that are delivered for the first time.

        The result is that of single calls, without the cost of a call for each. Return None if an entry's
        last field is `unless`.
        """
        messages, new = [], cls.__new__
        for message_id, fields in entries:
            if fields[-2] == unless:
                return None
            message = new(cls)
            message._source = source
            message._id = message_id.decode()
            message._attempt = 1
            message._fields = fields
            message._value = None
            messages.append(message)
        return messages

    @property
    def value(self) -> Any:
        """The value that was published. Raises Undecodable if the stream entry is not one of ours."""
        if self._value is None:
            self._value = self._source.decode(self._fields)
        return self._value[0]

    def _decoded(self) -> Decoded:
        if self._value is None:
            self._value = self._source.decode(self._fields)
        return self._value

    @property
    def key(self) -> str | None:
        """The key; None if it has none. Raises Undecodable."""
        return self._decoded()[1]

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers. Raises Undecodable."""
        value, key, headers = self._decoded()
        if headers is None:
            headers = {}
            self._value = value, key, headers
        return headers

    @property
    def raw(self) -> dict[bytes, bytes]:
        """The stream entry's fields exactly as Redis holds them."""
        return dict(zip(self._fields[::2], self._fields[1::2], strict=False))

    @property
    def timestamp(self) -> datetime:
        """The time when Redis stored the message, by the server's clock: from its id, to the millisecond.

        An id beyond the calendar, which only somebody else can have given, has the time `moments.BEYOND`.
        """
        return moment(int(self.id.partition("-")[0]))

    def lease_valid(self) -> bool:
        """Ask Redis whether this worker still owns the lane of the message, in one round trip.

        Call it in a long handler before you do what must not happen twice, in the thread in which the handler
        runs. It returns False if another worker has taken over, if Redis cannot be asked, and outside of a
        handler.
        """
        return self._prove is not None and self._prove()

    def __repr__(self) -> str:
        return f"<Message {self.topic}/{self.partition}/{self.id} attempt {self.attempt}>"


def _checked_id(text: str) -> str:
    ms, seq = id_pair(text)
    if max(ms, seq) >= 2**64:
        raise ConfigurationError(f"{text!r} is not a message id: its parts are numbers of 64 bits.")
    return f"{ms}-{seq}"


def id_pair(message_id: str | bytes) -> tuple[int, int]:
    """Return an id such as `"1700-3"` as (1700, 3): ids compare as pairs of integers, never as text."""
    ms, _, seq = (message_id.decode() if isinstance(message_id, bytes) else message_id).partition("-")
    return int(ms), int(seq or 0)


def known_id(raw: bytes | str) -> str | None:
    """Return the text of an id that is written as Redis writes it; None for anything else."""
    text = raw.decode("ascii", "replace") if isinstance(raw, bytes) else raw
    return text if _ID.fullmatch(text) and max(id_pair(text)) < 2**64 else None
