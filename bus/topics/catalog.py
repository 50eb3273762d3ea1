"""Reads the declared topics and groups of one Redis, and says which records cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bus.errors import ForeignData, UnknownGroup, UnknownTopic
from bus.format.keys import Keys
from bus.format.lane_id import LaneId
from bus.format.records import GroupSpec, Look, Spec, load_group, load_topic, sorted_out
from bus.safety.unreadable import Unreadable, tell
from bus.streams import commands
from bus.streams.connect import Client, check
from bus.values import TopicSpec


@dataclass(frozen=True, slots=True)
class Tables:
    """The declared topics and groups whose records can be read."""

    topics: dict[str, TopicSpec]
    groups: list[GroupSpec]
    group_names: frozenset[tuple[str, str]] = frozenset()
    """(topic, group) of all declared groups, also by a newer version, whose records are left alone."""

    def homes(self) -> Iterator[LaneId]:
        """Yield one lane for each partition of each declared group, whatever its ordering."""
        for group in self.groups:
            if (spec := self.topics.get(group.topic)) is not None:
                for partition in range(spec.partitions):
                    yield LaneId(group.topic, partition, group.name)


class Catalog:
    """Reads topics and groups from Redis each time; only `tables` remembers. Thread-safe."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._tables = Tables({}, [])
        self._tables_read: list[object] = []

    # ------------------------------------------------------------------ all

    def look(self) -> Look:
        """Return all topics and groups, and their unreadable records, from one round trip."""
        return self._sorted(
            self._client.pipe([("HGETALL", self._keys.topics), ("HGETALL", self._keys.groups)])
        )

    def _sorted(self, replies: list[Any]) -> Look:
        topics, groups = replies
        specs, strange = sorted_out(self._keys.topics, topics, load_topic)
        readable_groups, strange_groups = sorted_out(self._keys.groups, groups, load_group)
        return Look({spec.name: spec for spec in specs}, readable_groups, strange + strange_groups)

    def tables(self) -> Tables:
        """Return all topics and groups, in one round trip; the same object as before if nothing changed.

        A record that could be read before, and now cannot, counts as it was read last: what a stranger writes
        takes nobody's lanes away. Such a group is not among `group_names`, so that whoever declares it writes
        its record anew, unless a newer version has written it.
        """
        replies = self._client.pipe([("HGETALL", self._keys.topics), ("HGETALL", self._keys.groups)])
        if replies != self._tables_read:
            look = self._sorted(replies)
            for record in look.unreadable:
                tell(record)
            self._tables, self._tables_read = self._with_what_was(look), replies
        return self._tables

    def _with_what_was(self, look: Look) -> Tables:
        before, strange = self._tables, {(record.key, record.field) for record in look.unreadable}
        whole = {record.key for record in look.unreadable if not record.field}

        def is_strange(key: str, name: str) -> bool:
            return key in whole or (key, name) in strange

        kept = {name: spec for name, spec in before.topics.items() if is_strange(self._keys.topics, name)}
        groups = [
            group for group in before.groups if is_strange(self._keys.groups, f"{group.topic}/{group.name}")
        ]
        newer = {
            record.field for record in look.unreadable if record.newer and record.key == self._keys.groups
        }
        pairs = (name.partition("/") for name in newer if "/" in name)
        group_names = {(group.topic, group.name) for group in look.groups}
        group_names |= {(topic, group) for topic, _, group in pairs}
        if self._keys.groups in whole:
            group_names |= before.group_names  # it says nothing
        return Tables({**kept, **look.specs}, [*groups, *look.groups], frozenset(group_names))

    # ------------------------------------------------------------------ topics

    def specs(self) -> dict[str, TopicSpec]:
        """Return all topics in Redis, by name. It logs unreadable records, and passes them over.

        Raises BusUnavailable, and ForeignData if the key is of another type.
        """
        return {spec.name: spec for spec in self._read(self._keys.topics, load_topic)}

    def stored(self, name: str) -> TopicSpec:
        """Return the spec of a topic as Redis has it now; unlike `spec` this restores nothing.

        Raises UnknownTopic, ForeignData (an unreadable record) or BusUnavailable.
        """
        raw = self._field(self._keys.topics, name)
        if raw is None:
            raise UnknownTopic(name)
        return _readable(load_topic(self._keys.topics, name.encode(), raw))

    # ------------------------------------------------------------------ groups

    def groups(self, topic: str | None = None) -> list[GroupSpec]:
        """Return the declared groups, of one topic or of all. Raises what `specs` raises."""
        specs = self._read(self._keys.groups, load_group)
        return [group for group in specs if topic in (None, group.topic)]

    def group_names(self) -> set[tuple[str, str]]:
        """Return (topic, group) of all groups with a record, even an unreadable one.

        Raises what `specs` raises.
        """
        pairs = (name.partition("/") for name in self._fields(self._keys.groups))
        return {(topic, group) for topic, _, group in pairs}

    def group(self, topic: str, group: str) -> GroupSpec:
        """Return one declared group.

        Raises UnknownGroup, ForeignData (an unreadable record) or BusUnavailable.
        """
        name = f"{topic}/{group}"
        raw = self._field(self._keys.groups, name)
        if raw is None:
            raise UnknownGroup(topic, group)
        return _readable(load_group(self._keys.groups, name.encode(), raw))

    # ------------------------------------------------------------------ inner

    def _read(self, key: str, load: Callable[[str, bytes, bytes], Spec | Unreadable]) -> list[Spec]:
        specs, unreadable = sorted_out(key, self._call_hash(key), load)
        for record in unreadable:
            tell(record)
        return specs

    def _fields(self, key: str) -> list[str]:
        return [commands.text(name) for name in self._call_hash(key)[::2]]

    def _call_hash(self, key: str) -> Any:
        return self._of_hash(key, "HGETALL", key)

    def _field(self, key: str, name: str) -> Any:
        return self._of_hash(key, "HGET", key, name)

    def _of_hash(self, key: str, *command: str) -> Any:
        reply = self._client.pipe([command])[0]
        if commands.is_wrongtype(reply):
            _readable(Unreadable(key, "", "", "is no hash"))
        return check(reply)


def _readable(record: Spec | Unreadable) -> Spec:
    if isinstance(record, Unreadable):
        tell(record)
        raise ForeignData(f"Redis holds what cannot be read: {record}. `bus doctor` says what to do.")
    return record
