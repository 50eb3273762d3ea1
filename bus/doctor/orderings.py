"""Check of orderings: is what is declared in effect?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from bus.client import Bus
from bus.doctor.finding import Finding
from bus.streams.commands import is_nogroup
from bus.streams.connect import check
from bus.topics import reordering
from bus.topics.reordering import GroupPartition
from bus.values import Ordering

_HINT = (
    "That is as it should be while messages are tried again: `bus pending list` shows them. Nothing new is "
    "given out there meanwhile. A worker must run that serves the group, and the group must not be paused."
)


def examine(bus: Bus) -> Iterator[Finding]:
    """One finding for each group that waits until its declared ordering can take effect."""
    specs = bus.registry.specs()
    places = [
        (GroupPartition(group.topic, group.name, number), group.ordering)
        for group in bus.registry.groups()
        if group.topic in specs
        for number in range(specs[group.topic].partitions)
    ]
    effects = reordering.read(bus, places)
    waiting: defaultdict[tuple[str, str, Ordering, Ordering], list[GroupPartition]] = defaultdict(list)
    for place, declared in places:
        if effects[place] != declared:
            waiting[place.topic, place.group, effects[place], declared].append(place)
    for (topic, group, effect, declared), those in waiting.items():
        told = (
            f"Group {group} of topic {topic} waits for {_pending(bus, those):,} messages in {len(those):,} "
            f"partitions until its ordering changes from {effect} to {declared}."
        )
        yield Finding("warning", "ordering", told, _HINT)


def _pending(bus: Bus, places: list[GroupPartition]) -> int:
    asked = [("XPENDING", bus.keys.partition(one.topic, one.partition).stream, one.group) for one in places]
    return sum(0 if is_nogroup(reply) else check(reply)[0] for reply in bus.client.pipe(asked))
