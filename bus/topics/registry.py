"""Topics and groups in Redis, which publishers and workers read instead of a database.

Truth lives in code (`bus.topic`) and in the database (`bus.models.Topic`); what is here is their
projection. A spec is cached for SPEC_SECONDS, so a new partition count reaches every publisher
within that time.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from bus.errors import BusError, ConfigurationError, ForeignData, UnknownTopic
from bus.format.keys import Keys, PartitionKeys
from bus.format.records import (
    GroupSpec,
    Look,
    dump_group,
    dump_topic,
    layout_of,
    load_group,
)  # fmt: skip
from bus.format.state import new_era
from bus.safety.unreadable import Unreadable, tell
from bus.streams import commands, counting
from bus.streams.connect import Client, check
from bus.streams.wire import Argument
from bus.topics import making, reordering
from bus.topics.catalog import Catalog, Tables
from bus.topics.declared import Declared
from bus.values import MAX_PARTITIONS, Position, TopicSpec, check_name

__all__ = ["LAYOUT", "RESTORED", "SPEC_SECONDS", "STRAYS", "Declared", "GroupSpec", "Registry", "Tables"]

logger = logging.getLogger("bus.registry")

#: How old a spec may be with which a publisher works. Seconds.
SPEC_SECONDS = 5.0

#: The layout of keys that this code reads and writes; a newer one in Redis is refused.
LAYOUT = 1

#: Up to so many topics are asked for one by one. More are read from the table of all topics.
MANY = 50
#: Records that one round trip writes.
RECORDS = 500

#: The hint that a stream was gone and is made again.
RESTORED = "restored"
#: The hint that leases may bear names of workers that do not hold the lanes (workers.membership.strays).
STRAYS = "strays"


class Registry(Catalog):
    """Reads and writes the topics and groups of one Redis. Thread-safe."""

    def __init__(
        self, client: Client, keys: Keys, declared: Declared, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(client, keys)
        self._clock = clock
        self.declared = declared
        self._cache: dict[str, tuple[TopicSpec, float]] = {}
        self.find_elsewhere: Callable[[str], TopicSpec | None] = lambda _name: None
        """Finds a topic whose record is gone and that code does not declare: in Django's database."""

    # ------------------------------------------------------------------ topics

    def spec(self, name: str) -> TopicSpec:
        """Return the spec of a topic, at most SPEC_SECONDS old.

        If its record is gone it is written again, where code or database declare the topic. Raises
        UnknownTopic, ForeignData (an unreadable record) or BusUnavailable.
        """
        cached = self._cache.get(name)
        if cached is not None and cached[1] > self._clock():
            return cached[0]
        check_name("Topic", name)
        try:
            spec = self._stored(name) or self._restore(name)
        except UnknownTopic:
            self._cache.pop(name, None)
            raise
        except ForeignData:
            if cached is None:
                raise
            spec = cached[0]  # the log tells of it; the topic is still there, as it was read last
        return self._remember(spec)

    def _remember(self, spec: TopicSpec) -> TopicSpec:
        cached = self._cache.get(spec.name)
        if cached is not None and cached[0] == spec:
            spec = cached[0]  # the same object, so that what was made from it stays
        self._cache[spec.name] = (spec, self._clock() + SPEC_SECONDS)
        return spec

    def _remember_all(self, names: set[str]) -> None:
        """Read very many topics at once. One that is not among them is then asked for by itself."""
        if len(names) > MANY:
            for name, spec in self.look().specs.items():
                if name in names:
                    self._remember(spec)

    def known(self, name: str) -> TopicSpec | None:
        """Return the spec that was read last, however old; None if none was. No I/O."""
        cached = self._cache.get(name)
        return None if cached is None else cached[0]

    def project(self, specs: Iterable[TopicSpec]) -> None:
        """Write specs to Redis and make their streams, with their declared groups. Idempotent.

        Unreadable records are written anew. Raises ConfigurationError (a topic would shrink) or ForeignData
        (a newer Jitney may have written its record), with nothing done. It raises ForeignData also for
        partitions that cannot be made, when all others are, and BusUnavailable.
        """
        topics = list(specs)
        look, unreadable = self._check_projectable(topics)
        for strange in unreadable:
            logger.warning(
                "The record of topic %r is written anew, since it cannot be read: %s.", strange.field, strange
            )
        groups = _by_topic(look.groups)
        partitions: dict[PartitionKeys, list[GroupSpec]] = {}
        for spec in topics:
            partitions |= self._partitions(spec, groups[spec.name])
        # The streams first: a publisher that sees the spec must find them.
        troubles = self._make_streams(partitions)
        records = [(spec.name, dump_topic(spec, look.specs.get(spec.name)), False) for spec in topics]
        for reply in self._declare_all(self._keys.topics, records):
            check(reply)
        for spec in topics:
            self._cache.pop(spec.name, None)
        if topics:
            self.hint("spec changed")
        _raise_first(troubles)

    def check_projectable(self, specs: Iterable[TopicSpec]) -> None:
        """Raise the errors with which `project` would refuse these topics; change nothing."""
        self._check_projectable(specs)

    def _check_projectable(self, specs: Iterable[TopicSpec]) -> tuple[Look, list[Unreadable]]:
        """Return what Redis has, and the unreadable records of these topics that may be written anew."""
        self.check_layout()
        look = self.look()
        unreadable = {record.field: record for record in look.unreadable if record.key == self._keys.topics}
        mendable = []
        for spec in specs:
            before = look.specs.get(spec.name)
            if before is not None and before.partitions > spec.partitions:
                raise ConfigurationError(
                    f"Topic {spec.name!r} has {before.partitions} partitions in Redis and cannot shrink to "
                    f"{spec.partitions}: messages of the last ones would be cut off. Make a new topic."
                )
            if (strange := unreadable.get(spec.name)) is not None:
                self._check_growth(spec, strange)
                mendable.append(strange)
        return look, mendable

    def _check_growth(self, spec: TopicSpec, strange: Unreadable) -> None:
        _check_mendable(strange)
        beyond = [self._keys.partition(spec.name, n).stream for n in range(spec.partitions, MAX_PARTITIONS)]
        if beyond and self._client.call("EXISTS", *beyond):
            raise ConfigurationError(
                f"The record of topic {spec.name!r} in Redis cannot be read ({strange}), and there are "
                f"streams beyond {spec.partitions} partitions, which would be cut off. Declare them too."
            )

    def restore_partition(self, name: str, partition: int) -> None:
        """Make a stream that is gone again, with its declared groups.

        Raises UnknownTopic, ForeignData or BusUnavailable.
        """
        spec = self.spec(name)
        groups_of = {self._keys.partition(spec.name, partition): self.groups(name)}
        _raise_first(self._make_streams(groups_of, gone=True))

    def delete(self, name: str) -> int:
        """Remove a topic with all its keys from Redis; return how many messages went with it.

        Raises UnknownTopic, ForeignData or BusUnavailable.
        """
        spec = self.spec(name)
        groups = [field for field in self._fields(self._keys.groups) if field.startswith(f"{name}/")]
        self._client.call("HDEL", self._keys.topics, name)
        if groups:
            self._client.call("HDEL", self._keys.groups, *groups)
        self._cache.pop(name, None)
        lengths = 0
        for partition in range(spec.partitions):
            keys = self._keys.partition(name, partition)
            length = self._client.pipe([("XLEN", keys.stream)])[0]
            lengths += 0 if commands.is_wrongtype(length) else check(length)
            self._client.call("UNLINK", keys.stream, *commands.scan(self._client, f"{keys.stream}:*"))
        self.hint("spec changed")
        return lengths

    def forget_cache(self) -> None:
        """Have each spec read again before it is used; `known` still returns the old ones."""
        self._cache = {name: (spec, -math.inf) for name, (spec, _) in self._cache.items()}

    # ------------------------------------------------------------------ groups

    def declare_groups(
        self,
        specs: Iterable[GroupSpec],
        *,
        on_new: Callable[[GroupSpec], None] | None = None,
        keep_ordering: bool = False,
    ) -> None:
        """Write groups to Redis and create them on every partition of their topics. Idempotent.

        A group that is declared already keeps its start. Another ordering takes effect where nothing is
        pending any more (see bus.topics.reordering); with `keep_ordering` it stays as it was declared last.
        `on_new` is called with each new group before it is created, by one caller only, however many declare
        it at once. Unreadable records are written anew, unless a newer Jitney has written them. For those,
        and for partitions in which groups cannot be made, it raises ForeignData when all else is done. Raises
        UnknownTopic, ConfigurationError or BusUnavailable.
        """
        declared = list(specs)
        table = commands.fields_of(self._call_hash(self._keys.groups))
        troubles: list[BusError] = []
        new: dict[str, tuple[GroupSpec, bool]] = {}
        for spec in declared:
            check_name("Group", spec.name)
            name = f"{spec.topic}/{spec.name}"
            try:
                if self._must_be_written(spec, table.get(name), keep_ordering=keep_ordering):
                    new.setdefault(name, (spec, name not in table))
            except ForeignData as error:
                troubles.append(error)
        self._write_groups(new, on_new)
        groups = _by_topic(self.groups())
        topics = sorted({spec.topic for spec in declared})
        self._remember_all(set(topics))
        partitions: dict[PartitionKeys, list[GroupSpec]] = {}
        for topic in topics:
            try:
                partitions |= self._partitions(self.spec(topic), groups[topic])
            except ForeignData as error:
                troubles.append(error)
        troubles += self._make_streams(partitions)
        _raise_first(troubles)

    def _must_be_written(self, spec: GroupSpec, raw: bytes | None, *, keep_ordering: bool) -> bool:
        """Return whether a group has no readable record; if it has one, change its ordering there."""
        name = f"{spec.topic}/{spec.name}"
        before = None if raw is None else load_group(self._keys.groups, name.encode(), raw)
        if isinstance(before, GroupSpec):
            if before.ordering != spec.ordering and not keep_ordering:
                partitions = range(self.spec(spec.topic).partitions)
                places = (self._keys.partition(spec.topic, number) for number in partitions)
                reordering.pin(self._client, places, spec.name, before.ordering)
                self.set_group(replace(before, ordering=spec.ordering))
                self.hint("ordering")
            return False
        if before is not None:
            _check_mendable(before)
            logger.warning(
                "The record of group %s is written anew, since it cannot be read: %s.", name, before
            )
        return True

    def _write_groups(
        self, new: dict[str, tuple[GroupSpec, bool]], on_new: Callable[[GroupSpec], None] | None
    ) -> None:
        """Write records of groups. `new`: by name, each with True if there was no record yet."""
        records = []
        for name, (spec, is_new) in new.items():
            record = replace(spec, start=start_id(spec.start), born=secrets.token_hex(8))
            # Of two at once that declare a new one the first counts: one birth, one start.
            records.append((name, dump_group(record), is_new))
        replies = self._declare_all(self._keys.groups, records)
        for (spec, is_new), made in zip(new.values(), replies, strict=True):
            if is_new and made == 1 and on_new is not None:
                on_new(spec)
        for reply in replies:
            check(reply)

    def forget_group(self, topic: str, group: str) -> None:
        """Remove the record of a group; bus.operating.groups removes the group from its streams."""
        self._client.call("HDEL", self._keys.groups, f"{topic}/{group}")

    def set_group(self, spec: GroupSpec) -> None:
        """Write the record of a group anew, for example to pause it."""
        self._declare(self._keys.groups, f"{spec.topic}/{spec.name}", dump_group(spec))

    # ------------------------------------------------------------------ shared

    def check_layout(self) -> None:
        """Raise ConfigurationError if a newer layout of keys is in Redis; write ours where there is none."""
        reply = self._client.pipe([("HGET", self._keys.meta, "layout")])[0]
        layout = layout_of(self._keys.meta, reply)
        if isinstance(layout, Unreadable):
            tell(layout)  # it says nothing of a newer version
        elif layout is None:
            self._declare(self._keys.meta, "layout", LAYOUT, keep=True)
        elif layout > LAYOUT:
            raise ConfigurationError(
                f"The keys under {self._keys.prefix!r} have layout {layout}; this Jitney knows up to "
                f"{LAYOUT}. Upgrade Jitney here, or use another BUS['PREFIX']."
            )

    def hint(self, what: str) -> None:
        """Wake every watcher. A hint only makes things sooner, so it is no error if it cannot be written."""
        try:
            commands.run(self._client, "hint", [self._keys.control], [what])
        except BusError:
            return

    def _declare(self, key: str, field: str, value: bytes | int, *, keep: bool = False) -> bool:
        """Write one field of a record hash, also while memory is full; return whether it was written.

        `keep`: do not overwrite the field.
        """
        return bool(commands.run(self._client, "declare", [key], [field, value, "1" if keep else ""]))

    def _declare_all(self, key: str, records: Iterable[tuple[str, bytes, bool]]) -> list[Any]:
        """Write many fields, each with its `keep`; return the replies, errors among them."""
        rest, replies = iter(records), []
        while page := list(islice(rest, RECORDS)):
            calls: list[tuple[list[str], list[Argument]]] = [
                ([key], [field, value, "1" if keep else ""]) for field, value, keep in page
            ]
            replies += commands.run_many(self._client, "declare", calls)
        return replies

    def _restore(self, name: str) -> TopicSpec:
        spec = self.declared.get(name) or self.find_elsewhere(name)
        if spec is None:
            raise UnknownTopic(name)
        self.project([spec])
        return spec

    def _stored(self, name: str) -> TopicSpec | None:
        """Return the spec in Redis; None if there is none, or an unreadable one that we may write anew."""
        try:
            return self.stored(name)
        except UnknownTopic:
            return None
        except ForeignData:
            if self.declared.get(name) is None or self._cache.get(name) is not None:
                raise
            return None

    def _partitions(self, spec: TopicSpec, groups: list[GroupSpec]) -> dict[PartitionKeys, list[GroupSpec]]:
        return {self._keys.partition(spec.name, number): groups for number in range(spec.partitions)}

    def _make_streams(
        self, groups_of: Mapping[PartitionKeys, Sequence[GroupSpec]], *, gone: bool = False
    ) -> list[ForeignData]:
        """Make the missing streams of partitions, with these groups; return the errors of single ones.

        `gone`: a stream was there and is not any more, also where its groups have left no trace.
        """
        era = new_era(self._keys.prefix)
        troubles, restored = making.make(self._client, era, groups_of)
        if restored or gone:
            # New ids may lie before those that idle lanes, in whatever worker, wait to see exceeded.
            self.hint(RESTORED)
        return troubles


def _by_topic(groups: Iterable[GroupSpec]) -> defaultdict[str, list[GroupSpec]]:
    by_topic: defaultdict[str, list[GroupSpec]] = defaultdict(list)
    for group in groups:
        by_topic[group.topic].append(group)
    return by_topic


def start_id(start: str | Position) -> str:
    """Return "earliest", "latest", or the id after which a group begins. Raises ConfigurationError."""
    position = Position.parse(start)
    if position.kind == "time":
        # Groups begin *after* an id: the last possible one before that millisecond.
        return counting.before(f"{position.value}-0")
    return position.value or position.kind


def _check_mendable(strange: Unreadable) -> None:
    if strange.newer:
        raise ForeignData(
            f"{strange}. It may be of a newer Jitney, so it is left as it is: upgrade Jitney here, or remove "
            "the record (HDEL) and declare it again."
        )


def _raise_first(troubles: Sequence[BusError]) -> None:
    if troubles:
        raise troubles[0]
