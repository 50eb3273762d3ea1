"""Checks whether anything that waits until it is due will never be moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from bus.doctor.finding import Finding, some
from bus.observe import Survey
from bus.observe.facts import ask, is_missing
from bus.operating import delayed
from bus.operating.delayed import DelayedRef
from bus.safety.unreadable import shown
from bus.streams.connect import check

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.format.keys import PartitionKeys
    from bus.streams.wire import Command

#: Records read of one partition at most, and bodies in one reply.
_READ = 1_000
_BODIES_A_REPLY = 50


@dataclass(slots=True)
class _Trouble:
    """Collects what will never be moved, over all partitions, by what is wrong with it."""

    gone: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    more: bool = False


def examine(bus: Bus, survey: Survey) -> Iterator[Finding]:
    """Yield one finding for each kind of trouble, or one that says that all is well."""
    partitions = [(spec.name, n) for spec in survey.topic_specs for n in range(spec.partitions)]
    commands: list[Command] = []
    for topic, number in partitions:
        keys = bus.keys.partition(topic, number)
        commands += [
            ("ZCARD", keys.delayed),
            ("ZCOUNT", keys.delayed, repr(delayed.NEVER), "+inf"),
            ("HLEN", keys.delayed_body),
            ("HGET", keys.delayed_body, "last"),
        ]
    replies = ask(bus.client, commands)
    trouble = _Trouble()
    for topic, number in partitions:
        _note(bus, trouble, topic, number, [next(replies) for _ in range(4)])
    findings = list(_findings(trouble))
    yield from findings
    if not findings:
        yield Finding("ok", "delayed", "What waits until it is due will be moved.")


def _note(bus: Bus, trouble: _Trouble, topic: str, number: int, replies: Sequence[Any]) -> None:
    keys = bus.keys.partition(topic, number)
    members, aside, bodies, last = replies
    if any(map(is_missing, replies)):
        trouble.keys += [
            key for key, reply in ((keys.delayed, members), (keys.delayed_body, bodies)) if is_missing(reply)
        ]
        return
    raw = check(last)
    if raw is not None and not raw.isdigit():
        trouble.numbers.append(f"{keys.delayed_body} says {shown(raw)}")
    bodiless = _read_aside(bus, trouble, topic, number, keys) if check(aside) else 0
    alone = check(bodies) - (raw is not None) - (check(members) - bodiless)
    if alone > 0:
        trouble.alone.append(f"{alone:,} bod{'y' if alone == 1 else 'ies'} in {keys.delayed_body}")


def _read_aside(bus: Bus, trouble: _Trouble, topic: str, number: int, keys: PartitionKeys) -> int:
    """Sort what was set aside in one partition by what is wrong; return how many have no body."""
    members = bus.client.call(
        "ZRANGEBYSCORE", keys.delayed, repr(delayed.NEVER), "+inf", "LIMIT", 0, _READ + 1
    )
    trouble.more = trouble.more or len(members) > _READ
    bodiless = 0
    rest = iter(members[:_READ])
    while page := list(islice(rest, _BODIES_A_REPLY)):
        bodies = bus.client.call("HMGET", keys.delayed_body, *page)
        for member, body in zip(page, bodies, strict=True):
            bodiless += body is None
            ref = DelayedRef.of_member(number, member)
            if ref is None:
                trouble.foreign.append(f"{shown(member)} in {keys.delayed}")
            elif body is None:
                trouble.gone.append(f"{topic}/{ref}")
            else:
                trouble.unreadable.append(f"{topic}/{ref} in {keys.delayed_body}: {shown(body)}")
    return bodiless


def _findings(trouble: _Trouble) -> Iterator[Finding]:
    more = " There are more." if trouble.more else ""
    kinds = (
        (trouble.keys, "Keys of delayed messages that hold something else", "Delete or rename those keys."),
        (
            trouble.numbers,
            "The number of the last delayed message cannot be read, so none can be published there",
            "Set the field `last` of that hash to a number above those of its other fields.",
        ),
        (
            trouble.gone,
            "Delayed messages whose bodies are gone: something removed them from Redis",
            "Publish them again if you can, then remove what is left with `bus delayed cancel TOPIC 3/d17`.",
        ),
        (
            trouble.unreadable,
            "Delayed messages that cannot be read, or whose time never comes, and that are not moved",
            "If a newer Jitney wrote them, upgrade here; else remove them: `bus delayed cancel TOPIC 3/d17`.",
        ),
        (
            trouble.foreign,
            "Records among the delayed messages that Jitney did not write, and does not move",
            "Remove each with ZREM, and a field of that name in the hash `…:delayed:body` with HDEL.",
        ),
        (
            trouble.alone,
            "Bodies of delayed messages without a time when they are due, so they are not moved",
            "Look at them with HSCAN, publish what is wanted again, and remove them with HDEL.",
        ),
    )
    for names, what, hint in kinds:
        if names:
            yield Finding("warning", "delayed", f"{what}: {some(names)}.{more}", hint)
