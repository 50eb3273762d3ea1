"""Trims topics by age: from the head only, and never past what a declared group has not settled."""

from __future__ import annotations

import logging
from datetime import timedelta

from bus.client import Bus
from bus.durations import words
from bus.errors import BusError, ForeignData
from bus.safety.complaints import Complaints
from bus.streams import commands
from bus.streams.connect import check, seconds_of
from bus.values import TopicSpec

#: The reply of trim.lua where a group that was made again has not been given back all that waited for it yet.
_GIVING = -2
#: How often the last id is noted in the time for which messages are kept, while ids are ahead of the clock.
NOTES = 16

_complaints = Complaints(logging.getLogger("bus.retention"), seconds=3600)


def trim(bus: Bus, spec: TopicSpec) -> int:
    """Trim the partitions of one topic by its retention and the server's clock; return the number trimmed.

    A partition in which a declared group is missing is left alone. So is one with foreign data in a key, and
    the log tells of it. Raises BusUnavailable.
    """
    if spec.retention is None:
        return 0
    (clock,) = bus.client.pipe([("TIME",)])
    now = int(seconds_of(clock) * 1000)
    kept = int(spec.retention.total_seconds() * 1000)
    groups = [group.name for group in bus.registry.groups(spec.name)]
    trimmed, left = 0, list(range(spec.partitions))
    while left:
        all_keys = [bus.keys.partition(spec.name, number) for number in left]
        calls: list[tuple[list[str], list[str | int]]] = [
            (
                [keys.stream, keys.ahead, *(keys.state(group) for group in groups)],
                [now, max(0, now - kept), kept // NOTES, *groups],
            )
            for keys in all_keys
        ]
        again = []
        for number, keys, reply in zip(
            left, all_keys, commands.run_many(bus.client, "trim", calls), strict=True
        ):
            if commands.is_of_one_partition(reply):
                _say_broken(keys.stream, reply)
                continue
            removed, ahead = check(reply)
            if removed == _GIVING:  # the worker that made the group again did not come to the end: go on
                _go_on(bus, spec.name, number, keys.stream)
            if removed > 0:
                trimmed += int(removed)
                again.append(number)
            if ahead:
                _say_ahead(keys.stream, ahead)
        left = again
    return trimmed


def _go_on(bus: Bus, topic: str, partition: int, stream: str) -> None:
    try:
        bus.registry.restore_partition(topic, partition)
    except ForeignData as error:
        _say_broken(stream, error)


def _say_broken(stream: str, error: object) -> None:
    _complaints.say(stream, "%s cannot be trimmed: %s. See `bus doctor`.", stream, error)


def _say_ahead(stream: str, by: int) -> None:
    _complaints.say(
        stream,
        "The ids of %s are ahead of the server's clock by %s: how long its messages are kept goes by when "
        "they were seen, not by their ids.",
        stream,
        ahead_words(by),
    )


def trim_all(bus: Bus) -> int:
    """Trim every topic that has a retention, whichever fails; then raise the first error.

    Return how many messages went.
    """
    trimmed, errors = 0, []
    for spec in bus.registry.specs().values():
        try:
            trimmed += trim(bus, spec)
        except BusError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return trimmed


def ahead_words(milliseconds: int) -> str:
    """Return in words how far ids are ahead."""
    try:
        return words(timedelta(seconds=milliseconds // 1000))
    except OverflowError:
        return "more time than there is"
