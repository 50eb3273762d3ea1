"""Trimming by age: from the head only, and never past what a declared group has not settled."""

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

#: The reply of trim.lua where a lost group that was made again is not given back all of it yet.
_GIVING = -2
#: While ids are ahead of the clock the last one is noted so often in the time for which messages are kept.
NOTES = 16

_complaints = Complaints(logging.getLogger("bus.retention"), seconds=3600)


def trim(bus: Bus, spec: TopicSpec) -> int:
    """Trim the partitions of one topic by its retention, by the server's clock; how many messages went.

    A partition in which a declared group is missing is left alone, and so is one with foreign data in a key,
    which is told of in the log. Raises BusUnavailable.
    """
    if spec.retention is None:
        return 0
    (clock,) = bus.client.pipe([("TIME",)])
    now = int(seconds_of(clock) * 1000)
    kept = int(spec.retention.total_seconds() * 1000)
    groups = [group.name for group in bus.registry.groups(spec.name)]
    trimmed, left = 0, list(range(spec.partitions))
    while left:
        every = [bus.keys.partition(spec.name, number) for number in left]
        calls: list[tuple[list[str], list[str | int]]] = [
            (
                [keys.stream, keys.ahead, *(keys.state(group) for group in groups)],
                [now, max(0, now - kept), kept // NOTES, *groups],
            )
            for keys in every
        ]
        again = []
        for number, keys, reply in zip(
            left, every, commands.run_many(bus.client, "trim", calls), strict=True
        ):
            if commands.is_of_one_partition(reply):
                _say_broken(keys.stream, reply)
                continue
            gone, ahead = check(reply)
            if gone == _GIVING:  # whoever made the group again did not come to the end: go on
                _go_on(bus, spec.name, number, keys.stream)
            if gone > 0:
                trimmed += int(gone)
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
    """Trim every topic that has a retention, also where another cannot be; then raise the first error."""
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
