"""Checks whether every partition and group that is declared is there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from bus.client import Bus
from bus.doctor.finding import Finding, Level, some
from bus.observe import Survey
from bus.observe.facts import StreamFacts, ask
from bus.streams.connect import check
from bus.streams.wire import Command
from bus.values import id_pair

#: The reply to TTL for a key that does not exist.
_NO_KEY = -2

_SYNC = "Run `bus topic sync`, which makes them again."

#: Kind of trouble → its level, what it is, and what to do.
_KINDS: dict[str, tuple[Level, str, str]] = {
    "missing": ("error", "Partitions that are declared but not there", _SYNC),
    "foreign": ("error", "Keys of partitions that hold something else", "Delete or rename those keys."),
    "group": ("error", "Groups that are declared but not there", _SYNC),
    "expires": ("error", "Partitions that will expire", "Run PERSIST on their keys."),
    "deleted": (
        "warning",
        "Partitions from which somebody removed messages with XDEL, so that offsets are off",
        "Leave removing to retention.",
    ),
}


def examine(bus: Bus, survey: Survey) -> Iterator[Finding]:
    """Yield one finding for each kind of trouble, or one that says that all is there."""
    declared: defaultdict[str, set[str]] = defaultdict(set)
    for group in survey.group_specs:
        declared[group.topic].add(group.name)
    partitions = [(topic, number, facts) for topic, streams in survey.streams.items()
                  for number, facts in enumerate(streams)]  # fmt: skip
    commands: list[Command] = [("TTL", bus.keys.partition(topic, n).stream) for topic, n, _ in partitions]
    trouble = _Trouble()
    for (topic, number, facts), ttl in zip(partitions, ask(bus.client, commands), strict=True):
        trouble.note(f"{topic}/{number}", declared[topic], facts, check(ttl))
    yield from trouble.findings()
    if not any(trouble.names.values()):
        topics = len(survey.topic_specs)
        told = f"{len(partitions):,} partitions of {topics:,} topics are there, with their groups."
        yield Finding("ok", "partitions", told)


class _Trouble:
    """Collects partitions by what is wrong with them."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {kind: [] for kind in _KINDS}

    def note(self, name: str, declared: set[str], facts: StreamFacts | None, ttl: int) -> None:
        if facts is None:
            self.names["missing" if ttl == _NO_KEY else "foreign"].append(name)
            return
        self.names["group"] += [f"{group} in {name}" for group in sorted(declared - set(facts.groups))]
        if ttl >= 0:
            self.names["expires"].append(name)
        if _has_gap(facts):
            self.names["deleted"].append(name)

    def findings(self) -> Iterator[Finding]:
        for kind, names in self.names.items():
            if names:
                level, what, hint = _KINDS[kind]
                yield Finding(level, "partitions", f"{what}: {some(names)}.", hint)


def _has_gap(facts: StreamFacts) -> bool:
    """Return whether a message was removed between the first that is left and the last that was stored."""
    if facts.deleted_id is None or facts.first_id is None:
        return False
    return id_pair(facts.deleted_id) > id_pair(facts.first_id)
