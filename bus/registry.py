"""Topics and groups as Redis knows them, so that publishers and workers need no database.

Truth lives in code (`bus.topic`) and in the database (`bus.models.Topic`); what is here is their
projection. A spec is cached for SPEC_SECONDS, so a new partition count reaches every publisher
within that time.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import orjson

from bus import making
from bus.errors import BusUnavailable, ConfigurationError, ServerError, UnknownTopic
from bus.keys import Keys
from bus.streams import commands
from bus.streams.connect import Client, check
from bus.values import Ordering, Position, TopicSpec, check_name

#: How long a publisher may go on with a spec that has changed meanwhile. Seconds.
SPEC_SECONDS = 5.0

#: The layout of keys that this code reads and writes; a newer one in Redis is refused.
LAYOUT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """What is declared of a consumer group on one topic."""

    topic: str
    name: str
    ordering: Ordering = "key"
    start: str = "earliest"
    """Where the group began: earliest, latest or an id."""
    paused: bool = False
    born: str = ""
    """Set when the group is declared first; one that is deleted and declared again is another group."""


def _dump_topic(spec: TopicSpec) -> bytes:
    retention = spec.retention.total_seconds() if spec.retention else None
    return orjson.dumps({"partitions": spec.partitions, "retention": retention})


def _load_topic(name: str, raw: bytes) -> TopicSpec:
    known = orjson.loads(raw)
    retention = known.get("retention")
    return TopicSpec(
        name=name,
        partitions=known["partitions"],
        retention=timedelta(seconds=retention) if retention else None,
    )


def _load_topics(table: Sequence[bytes]) -> dict[str, TopicSpec]:
    known = commands.fields_of(table)
    return {name: _load_topic(name, raw) for name, raw in sorted(known.items())}


def _load_groups(table: Sequence[bytes]) -> list[GroupSpec]:
    found = []
    for field, raw in sorted(commands.fields_of(table).items()):
        name, _, group = field.partition("/")
        found.append(GroupSpec(topic=name, name=group, **orjson.loads(raw)))
    return found


@dataclass(frozen=True, slots=True)
class Tables:
    """What is declared in Redis."""

    topics: dict[str, TopicSpec]
    groups: list[GroupSpec]


class Declared:
    """The topics that code declares. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._specs: dict[str, TopicSpec] = {}

    def add(self, spec: TopicSpec) -> None:
        """Remember a topic. Declaring it again differently is a ConfigurationError."""
        with self._lock:
            known = self._specs.setdefault(spec.name, spec)
        if known != spec:
            raise ConfigurationError(
                f"Topic {spec.name!r} is declared twice and differently: {known} and {spec}. Keep one."
            )

    def get(self, name: str) -> TopicSpec | None:
        return self._specs.get(name)

    def specs(self) -> dict[str, TopicSpec]:
        return dict(self._specs)


class Registry:
    """The projection of topics and groups in one Redis. Thread-safe."""

    def __init__(
        self, client: Client, keys: Keys, declared: Declared, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._keys = keys
        self._clock = clock
        self.declared = declared
        self._cache: dict[str, tuple[TopicSpec, float]] = {}
        self._tables = Tables({}, [])
        self._tables_read: list[object] = []
        self.find_elsewhere: Callable[[str], TopicSpec | None] = lambda _name: None
        """Asked for a topic that Redis lost and code does not declare; Django looks in its database."""

    # ------------------------------------------------------------------ topics

    def spec(self, name: str) -> TopicSpec:
        """The spec of a topic, at most SPEC_SECONDS old. Raises UnknownTopic or BusUnavailable."""
        cached = self._cache.get(name)
        if cached is not None and cached[1] > self._clock():
            return cached[0]
        check_name("Topic", name)
        raw = self._client.call("HGET", self._keys.topics, name)
        try:
            spec = _load_topic(name, raw) if raw is not None else self._restore(name)
        except UnknownTopic:
            self._cache.pop(name, None)
            raise
        if cached is not None and cached[0] == spec:
            spec = cached[0]  # the same object, so that what was made from it stays
        self._cache[name] = (spec, self._clock() + SPEC_SECONDS)
        return spec

    def known(self, name: str) -> TopicSpec | None:
        """The spec as it was asked for last, however long ago; None if it never was. No I/O."""
        cached = self._cache.get(name)
        return None if cached is None else cached[0]

    def specs(self) -> dict[str, TopicSpec]:
        """All topics in Redis, by name."""
        return _load_topics(self._client.call("HGETALL", self._keys.topics))

    def project(self, specs: Iterable[TopicSpec]) -> None:
        """Write specs to Redis and make their streams, with their declared groups. Idempotent."""
        wanted = list(specs)
        self.check_layout()
        known = self.specs()
        for spec in wanted:
            before = known.get(spec.name)
            if before is not None and before.partitions > spec.partitions:
                raise ConfigurationError(
                    f"Topic {spec.name!r} has {before.partitions} partitions in Redis and cannot shrink to "
                    f"{spec.partitions}: messages of the last ones would be cut off. Make a new topic."
                )
        groups = self.groups()
        for spec in wanted:
            # The streams first: a publisher that sees the spec must find them.
            self._make_streams(spec, range(spec.partitions), groups)
            self._declare(self._keys.topics, spec.name, _dump_topic(spec))
            self._cache.pop(spec.name, None)
        if wanted:
            self.hint("spec changed")

    def restore_partition(self, name: str, partition: int) -> None:
        """Make a stream that has vanished again, with its declared groups."""
        self._make_streams(self.spec(name), [partition], self.groups())

    def delete(self, name: str) -> int:
        """Remove a topic with all its keys from Redis; return how many messages went with it."""
        spec = self.spec(name)
        groups = [group.name for group in self.groups() if group.topic == name]
        self._client.call("HDEL", self._keys.topics, name)
        if groups:
            self._client.call("HDEL", self._keys.groups, *(f"{name}/{group}" for group in groups))
        self._cache.pop(name, None)
        lengths = 0
        for partition in range(spec.partitions):
            keys = self._keys.partition(name, partition)
            lengths += self._client.call("XLEN", keys.stream)
            self._client.call("UNLINK", keys.stream, *commands.scan(self._client, f"{keys.stream}:*"))
        self.hint("spec changed")
        return lengths

    def forget_cache(self) -> None:
        """Ask for every spec again when it is next needed; until then it is still `known`."""
        self._cache = {name: (spec, -math.inf) for name, (spec, _) in self._cache.items()}

    # ------------------------------------------------------------------ groups

    def groups(self, topic: str | None = None) -> list[GroupSpec]:
        """The declared groups, of one topic or of all."""
        found = _load_groups(self._client.call("HGETALL", self._keys.groups))
        return [group for group in found if topic in (None, group.topic)]

    def tables(self) -> Tables:
        """All topics and declared groups, in one round trip; the same object as before if nothing changed."""
        replies = self._client.pipe([("HGETALL", self._keys.topics), ("HGETALL", self._keys.groups)])
        if replies != self._tables_read:
            topics, groups = map(check, replies)
            self._tables = Tables(_load_topics(topics), _load_groups(groups))
            self._tables_read = replies
        return self._tables

    def declare_groups(
        self, specs: Iterable[GroupSpec], *, on_new: Callable[[GroupSpec], None] | None = None
    ) -> None:
        """Write groups to Redis and create them on every partition of their topics. Idempotent.

        `on_new` is called with each group that was not declared yet, before it is created: by one caller
        only, however many declare it at once.
        """
        wanted = list(specs)
        known = {(group.topic, group.name): group for group in self.groups()}
        for spec in wanted:
            check_name("Group", spec.name)
            before = known.get((spec.topic, spec.name))
            if before is None or before.ordering != spec.ordering:
                start = start_id(spec.start if before is None else before.start)
                paused = before.paused if before else spec.paused
                born = before.born if before else secrets.token_hex(8)
                record = {"ordering": spec.ordering, "start": start, "paused": paused, "born": born}
                # Of two at once that declare a new one the first counts: one birth, one start.
                field, dumped = f"{spec.topic}/{spec.name}", orjson.dumps(record)
                made = self._declare(self._keys.groups, field, dumped, keep=before is None)
                if before is None and made and on_new is not None:
                    on_new(spec)
        everything = self.groups()
        wrong: list[ServerError] = []
        for topic in sorted({spec.topic for spec in wanted}):
            try:
                self._make_streams(self.spec(topic), range(self.spec(topic).partitions), everything)
            except ServerError as error:  # a key of another type: the other topics can do without it
                wrong.append(error)
        if wrong:
            raise wrong[0]

    def forget_group(self, topic: str, group: str) -> None:
        """Drop the declaration of a group (its streams' groups are dropped by bus.groups)."""
        self._client.call("HDEL", self._keys.groups, f"{topic}/{group}")

    def set_group(self, spec: GroupSpec) -> None:
        """Replace the declaration of a group, for example to pause it."""
        record = {
            "ordering": spec.ordering, "start": spec.start, "paused": spec.paused, "born": spec.born
        }  # fmt: skip
        self._declare(self._keys.groups, f"{spec.topic}/{spec.name}", orjson.dumps(record))

    # ------------------------------------------------------------------ shared

    def check_layout(self) -> None:
        """Refuse a Redis whose keys a newer Jitney has written; mark an empty one as ours."""
        raw = self._client.call("HGET", self._keys.meta, "layout")
        if raw is None:
            self._declare(self._keys.meta, "layout", LAYOUT, keep=True)
        elif int(raw) > LAYOUT:
            raise ConfigurationError(
                f"The keys under {self._keys.prefix!r} have layout {int(raw)}; this Jitney knows up to "
                f"{LAYOUT}. Upgrade Jitney here, or use another BUS['PREFIX']."
            )

    def hint(self, what: str) -> None:
        """Wake every watcher. A hint only makes things sooner, so one that cannot be written is no error."""
        try:
            commands.run(self._client, "hint", [self._keys.control], [what])
        except BusUnavailable:
            return

    def _declare(self, key: str, field: str, value: bytes | int, *, keep: bool = False) -> bool:
        """Write one field of what is declared, also while memory is full; True if it was written.

        `keep`: leave what is there.
        """
        return bool(commands.run(self._client, "declare", [key], [field, value, "1" if keep else ""]))

    def _restore(self, name: str) -> TopicSpec:
        spec = self.declared.get(name) or self.find_elsewhere(name)
        if spec is None:
            raise UnknownTopic(name)
        self.project([spec])
        return spec

    def _make_streams(self, spec: TopicSpec, partitions: Iterable[int], groups: list[GroupSpec]) -> None:
        mine = [group for group in groups if group.topic == spec.name]
        every = [self._keys.partition(spec.name, number) for number in partitions]
        # With the prefix: databases may hold the inboxes of more than one bus.
        making.make(self._client, f"{self._keys.prefix}:{secrets.token_hex(8)}", every, mine)


def start_id(start: str | Position) -> str:
    """ "earliest", "latest", or the id after which a group begins. Raises ConfigurationError."""
    position = Position.parse(start)
    if position.kind == "time":
        # Groups begin *after* an id: the last possible one before that millisecond.
        return f"{int(position.value) - 1}-18446744073709551615"
    return position.value or position.kind
