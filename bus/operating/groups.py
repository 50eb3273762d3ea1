"""Creates, pauses, resumes and deletes consumer groups. `bus.operating.operate` adds the audit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bus.errors import ConfigurationError, ForeignData, ServerError, UnknownGroup
from bus.format.records import GroupSpec
from bus.safety.verbs import verb
from bus.streams.commands import is_nogroup, is_wrongtype
from bus.streams.connect import check
from bus.values import ORDERINGS, Ordering, Position, check_new_name

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.format.keys import PartitionKeys

#: Messages that one XACK acknowledges where a group is deleted.
IDS_AN_XACK = 1_000
#: Keys that one SCAN looks at, about.
KEYS_A_SCAN = 1_000


@verb("create group")
def create(bus: Bus, topic: str, group: str, *, start: str = "earliest", ordering: Ordering = "key") -> None:
    """Create a group on every partition of a topic.

    `start`: "earliest", "latest", a message id after which it begins, or an ISO time.
    Raises ConfigurationError (a bad name, start or ordering, or the group exists), UnknownTopic or
    BusUnavailable.
    """
    check_new_name("Group", group)
    Position.parse(start)
    if ordering not in ORDERINGS:
        raise ConfigurationError(f"ordering must be one of {', '.join(ORDERINGS)}, not {ordering!r}.")
    if _is_declared(bus, topic, group):
        raise ConfigurationError(f"Topic {topic!r} has a group {group!r} already.")
    bus.registry.declare_groups([GroupSpec(topic=topic, name=group, ordering=ordering, start=start)])
    bus.registry.hint("spec changed")


@verb("pause group")
def pause(bus: Bus, topic: str, group: str) -> None:
    """Stop giving messages to a group; what was given is still settled. Raises UnknownTopic, UnknownGroup."""
    _set_paused(bus, topic, group, True)


@verb("resume group")
def resume(bus: Bus, topic: str, group: str) -> None:
    """Give messages to a paused group again. Raises UnknownTopic, UnknownGroup."""
    _set_paused(bus, topic, group, False)


@verb("delete group")
def delete(bus: Bus, topic: str, group: str) -> None:
    """Remove a group with its position, pending list and dead letters from all partitions of a topic.

    The loss of its leases fences a worker that still serves the group. The messages of the topic stay.
    Raises UnknownTopic, UnknownGroup, BusUnavailable.
    """
    spec = bus.registry.spec(topic)
    was_declared = _is_declared(bus, topic, group)
    # First the declaration, or a worker that misses the group would make it again from there.
    bus.registry.forget_group(topic, group)
    leases = list(_scan(bus, bus.keys.leases(topic, group)))
    replies = _remove(bus, topic, group, spec.partitions, leases)
    bus.registry.hint("reset")
    if not was_declared and not any(replies):
        raise UnknownGroup(topic, group)


def _remove(bus: Bus, topic: str, group: str, partitions: int, leases: list[bytes]) -> list[int]:
    """Remove the group; return 1 for each partition that had it, else 0.

    Its leases go first: then nobody can settle.
    """
    all_keys = [bus.keys.partition(topic, number) for number in range(partitions)]
    if leases:
        bus.client.call("UNLINK", *leases)
    for keys in all_keys:
        _empty(bus, keys, group)
    destroyed = bus.client.pipe([("XGROUP", "DESTROY", keys.stream, group) for keys in all_keys])
    # A worker may have taken leases meanwhile. From here on none can, since there is no group to take them
    # in.
    if late := list(_scan(bus, bus.keys.leases(topic, group))):
        bus.client.call("UNLINK", *late)
    for reply in bus.client.pipe([("UNLINK", *keys.of_group(group)) for keys in all_keys]):
        check(reply)
    return [_destroyed(reply) for reply in destroyed]


def _empty(bus: Bus, keys: PartitionKeys, group: str) -> None:
    """Acknowledge what is pending, in pages: to destroy a group with much of it takes the server long.

    It is as much as there is now. What a stranger is given meanwhile is destroyed with the group.
    """
    reply = bus.client.pipe([("XPENDING", keys.stream, group)])[0]
    left = 0 if is_nogroup(reply) or is_wrongtype(reply) else check(reply)[0]
    while left > 0:
        rows = bus.client.call("XPENDING", keys.stream, group, "-", "+", IDS_AN_XACK)
        if not rows:
            return
        bus.client.call("XACK", keys.stream, group, *(row[0] for row in rows))
        left -= len(rows)


def _destroyed(reply: Any) -> int:
    """Return how many groups XGROUP DESTROY has removed."""
    if is_wrongtype(reply) or (isinstance(reply, ServerError) and "requires the key to exist" in str(reply)):
        return 0  # the whole stream is gone, and the group with it
    return int(check(reply))


def _set_paused(bus: Bus, topic: str, group: str, paused: bool) -> None:
    bus.registry.spec(topic)  # raises UnknownTopic
    spec = bus.registry.group(topic, group)
    bus.registry.set_group(replace(spec, paused=paused))
    bus.registry.hint("pause" if paused else "resume")


def _is_declared(bus: Bus, topic: str, group: str) -> bool:
    """Return whether the group has a record, also one that cannot be read. Raises UnknownTopic."""
    bus.registry.spec(topic)
    try:
        bus.registry.group(topic, group)
    except UnknownGroup:
        return False
    except ForeignData:
        return True
    return True


def _scan(bus: Bus, pattern: str) -> Iterator[bytes]:
    cursor: bytes | str = "0"
    while True:
        cursor, page = bus.client.call("SCAN", cursor, "MATCH", pattern, "COUNT", KEYS_A_SCAN)
        yield from page
        if cursor in (b"0", "0"):
            return
