"""Finds messages that were removed from a topic before a group was given them, and counts them once.

Retention never removes such (see bus.upkeep.retention); XTRIM by hand, XDEL, or MAXLEN by another program
can. Messages that are removed after they were given and before they are settled are counted where they are
looked for: `trimmed` in the state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bus.client import Bus
from bus.errors import Forbidden, ServerError
from bus.observe.info import Info
from bus.observe.loss import loss_words
from bus.streams import commands
from bus.streams.connect import check
from bus.values import TopicSpec

#: Scripts in one write.
SCRIPTS_A_WRITE = 1_000


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss that one look found, of one group in one partition."""

    topic: str
    partition: int
    group: str
    count: int
    at_most: int
    """How many more it may have been at most: the group had read on before anybody looked."""

    def __str__(self) -> str:
        number = loss_words(self.count, self.at_most)
        return (
            f"Group {self.group} lost {number} messages of {self.topic}/{self.partition}: "
            "they were removed from Redis before it was given them"
        )


def look(bus: Bus) -> list[Loss]:
    """Look at all partitions of all topics once; return the losses that are new. Raises BusUnavailable."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for group in bus.registry.groups():
        groups[group.topic].append(group.name)
    specs = [spec for spec in bus.registry.specs().values() if groups[spec.name]]
    run = _run(bus) if specs else ""
    new: list[Loss] = []
    partitions = [(spec, partition) for spec in specs for partition in range(spec.partitions)]
    for start in range(0, len(partitions), SCRIPTS_A_WRITE):
        page = partitions[start : start + SCRIPTS_A_WRITE]
        calls = [call(bus, spec, partition, groups[spec.name], run) for spec, partition in page]
        for (spec, partition), reply in zip(page, commands.run_many(bus.client, "lost", calls), strict=True):
            if commands.is_of_one_partition(reply):
                continue  # something foreign; doctor names it
            check(reply)
            new += _losses(spec.name, partition, reply)
    return new


def call(
    bus: Bus, spec: TopicSpec, partition: int, groups: Sequence[str], run: str
) -> tuple[list[str], list[str]]:
    """Return keys and arguments of `lost.lua` for one partition."""
    keys = bus.keys.partition(spec.name, partition)
    return [keys.stream, *(keys.state(group) for group in groups)], [run, *groups]


def _losses(topic: str, partition: int, reply: Sequence[Any]) -> list[Loss]:
    return [
        Loss(topic, partition, commands.text(group), count, at_most)
        for group, count, at_most in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
    ]


def _run(bus: Bus) -> str:
    """Return "*" if the server keeps how far groups have read over restarts, else the id of its run."""
    try:
        info = Info.parse(bus.client.call("INFO", "server"))
    except (Forbidden, ServerError):
        return "?"
    return "*" if info.keeps_lag else info.fields.get("run_id", "?")
