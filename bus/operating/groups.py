"""Consumer groups: create, pause, resume, delete. `bus.operating.operate` adds the audit to these."""

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

#: Messages that are acknowledged at a time where a group is deleted.
PAGE = 1_000


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

    A worker that still serves it is fenced by the loss of its leases. The messages of the topic stay.
    Raises UnknownTopic, UnknownGroup, BusUnavailable.
    """
    spec = bus.registry.spec(topic)
    known = _is_declared(bus, topic, group)
    # First the declaration, or a worker that misses the group would make it again from there.
    bus.registry.forget_group(topic, group)
    leases = list(_scan(bus, bus.keys.leases(topic, group)))
    replies = _remove(bus, topic, group, spec.partitions, leases)
    bus.registry.hint("reset")
    if not known and not any(replies):
        raise UnknownGroup(topic, group)


def _remove(bus: Bus, topic: str, group: str, partitions: int, leases: list[bytes]) -> list[int]:
    """Remove the group, its leases first: then nobody can settle. 1 for each partition that had it."""
    every = [bus.keys.partition(topic, number) for number in range(partitions)]
    if leases:
        bus.client.call("UNLINK", *leases)
    for keys in every:
        _empty(bus, keys, group)
    destroyed = bus.client.pipe([("XGROUP", "DESTROY", keys.stream, group) for keys in every])
    # A worker may have taken some meanwhile; from here on none can be, since there is no group to take it in.
    if late := list(_scan(bus, bus.keys.leases(topic, group))):
        bus.client.call("UNLINK", *late)
    for reply in bus.client.pipe([("UNLINK", *keys.of_group(group)) for keys in every]):
        check(reply)
    return [_destroyed(reply) for reply in destroyed]


def _empty(bus: Bus, keys: PartitionKeys, group: str) -> None:
    """Acknowledge what is pending, in pages: to destroy a group with much of it takes the server long.

    As much as there is now: what a stranger is given meanwhile is destroyed with the group.
    """
    known = bus.client.pipe([("XPENDING", keys.stream, group)])[0]
    left = 0 if is_nogroup(known) or is_wrongtype(known) else check(known)[0]
    while left > 0:
        rows = bus.client.call("XPENDING", keys.stream, group, "-", "+", PAGE)
        if not rows:
            return
        bus.client.call("XACK", keys.stream, group, *(row[0] for row in rows))
        left -= len(rows)


def _destroyed(reply: Any) -> int:
    if is_wrongtype(reply) or (isinstance(reply, ServerError) and "requires the key to exist" in str(reply)):
        return 0  # the whole stream is gone, and the group with it
    return int(check(reply))


def _set_paused(bus: Bus, topic: str, group: str, paused: bool) -> None:
    bus.registry.spec(topic)  # raises UnknownTopic
    spec = bus.registry.group(topic, group)
    bus.registry.set_group(replace(spec, paused=paused))
    bus.registry.hint("pause" if paused else "resume")


def _is_declared(bus: Bus, topic: str, group: str) -> bool:
    """Whether there is a record of it, also one that cannot be read. Raises UnknownTopic."""
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
        cursor, page = bus.client.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
        yield from page
        if cursor in (b"0", "0"):
            return
