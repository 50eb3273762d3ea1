"""Trimming by age: from the head only, and never past what a declared group has not settled."""

from __future__ import annotations

from bus.client import Bus
from bus.errors import ServerError
from bus.streams import commands
from bus.streams.connect import error_of, seconds_of
from bus.values import TopicSpec

#: The reply of trim.lua where a lost group that was made again is not given back all of it yet.
_GIVING = -2


def trim(bus: Bus, spec: TopicSpec) -> int:
    """Trim the partitions of one topic by its retention, by the server's clock; how many messages went.

    A partition in which a declared group is missing is left alone. Raises BusUnavailable.
    """
    if spec.retention is None:
        return 0
    (clock,) = bus.client.pipe([("TIME",)])
    cutoff = max(0, int(seconds_of(clock) * 1000) - int(spec.retention.total_seconds() * 1000))
    groups = [group.name for group in bus.registry.groups(spec.name)]
    trimmed, left = 0, list(range(spec.partitions))
    while left:
        calls: list[tuple[list[str], list[str | int]]] = [
            ([keys.stream, *(keys.state(group) for group in groups)], [cutoff, *groups])
            for keys in (bus.keys.partition(spec.name, number) for number in left)
        ]
        replies = commands.run_many(bus.client, "trim", calls)
        again = []
        for number, reply in zip(left, replies, strict=True):
            if isinstance(reply, ServerError):
                raise error_of(reply)
            if reply == _GIVING:  # whoever made the group again did not come to the end: go on
                bus.registry.restore_partition(spec.name, number)
            if reply > 0:
                trimmed += int(reply)
                again.append(number)
        left = again
    return trimmed


def trim_all(bus: Bus) -> int:
    """Trim every topic that has a retention."""
    return sum(trim(bus, spec) for spec in bus.registry.specs().values())
