"""Checks of the partitions: is everything there that is declared?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from bus.client import Bus
from bus.doctor.finding import Finding, Level
from bus.observe.facts import StreamFacts, ask, stream_command, stream_facts
from bus.streams.connect import check
from bus.streams.wire import Command
from bus.values import id_pair

#: Partitions named in one text.
_NAMED = 5

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


def examine(bus: Bus) -> Iterator[Finding]:
    """One finding for each kind of trouble, or one that says that all is there."""
    look = bus.registry.look()
    specs = look.specs
    declared: defaultdict[str, set[str]] = defaultdict(set)
    for group in look.groups:
        declared[group.topic].add(group.name)
    places = [(name, number) for name, spec in specs.items() for number in range(spec.partitions)]
    commands: list[Command] = []
    for topic, number in places:
        stream = bus.keys.partition(topic, number).stream
        commands += [stream_command(stream), ("TTL", stream)]
    replies = ask(bus.client, commands)
    trouble = _Trouble()
    for topic, number in places:
        trouble.note(f"{topic}/{number}", declared[topic], next(replies), next(replies))
    yield from trouble.findings()
    if not any(trouble.found.values()):
        told = f"{len(places):,} partitions of {len(specs):,} topics are there, with their groups."
        yield Finding("ok", "partitions", told)


class _Trouble:
    """Partitions by what is wrong with them."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {kind: [] for kind in _KINDS}

    def note(self, name: str, declared: set[str], reply: Any, ttl: Any) -> None:
        facts = stream_facts(reply)
        if facts is None:
            self.found["missing" if check(ttl) == _NO_KEY else "foreign"].append(name)
            return
        self.found["group"] += [f"{group} in {name}" for group in sorted(declared - set(facts.groups))]
        if check(ttl) >= 0:
            self.found["expires"].append(name)
        if _has_gap(facts):
            self.found["deleted"].append(name)

    def findings(self) -> Iterator[Finding]:
        for kind, names in self.found.items():
            if names:
                level, what, hint = _KINDS[kind]
                yield Finding(level, "partitions", f"{what}: {_some(names)}.", hint)


def _has_gap(facts: StreamFacts) -> bool:
    """True if a message was removed between the first and the last that are left or were stored."""
    if facts.deleted_id is None or facts.first_id is None:
        return False
    return id_pair(facts.deleted_id) > id_pair(facts.first_id)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
