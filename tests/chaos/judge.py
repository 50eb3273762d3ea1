"""Compares the ledgers with each other and with the faults: what was lost, repeated, or out of order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from tests.chaos.faults import Fault
from tests.chaos.ledger import Call, Handling, Published
from tests.chaos.ownership import Lane, Orphan
from tests.chaos.repeats import SECOND, Attribution, Delivery, Place, Repeat, place_of
from tests.chaos.service import Spell

#: While the broker answers nobody, messages are handled: at the latest after so long. Seconds.
BROKER_MATTERS = 5


@dataclass(slots=True)
class Leftover:
    """What the bus says of itself after draining, per group. None: it does not know."""

    group: str
    lag: int | None
    pending: int | None
    retrying: int | None
    held: int | None
    dead: int | None
    strange: int = 0
    """Entries that a stranger wrote: so many dead letters there may be."""

    @property
    def clean(self) -> bool:
        waiting = (self.lag, self.pending, self.retrying, self.held)
        return waiting == (0, 0, 0, 0) and self.dead is not None and self.dead <= self.strange


@dataclass(slots=True)
class Verdict:
    """The findings of a run."""

    published: int = 0
    vanished: int = 0
    """Of these the server has lost, coming back with older data: nobody need handle them."""
    handled: int = 0
    """By all groups together."""
    lost: list[tuple[str, Published]] = field(default_factory=list)
    """Group, message."""
    unexpected: list[Handling] = field(default_factory=list)
    disorder: list[str] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unbooked: list[Place] = field(default_factory=list)
    """Messages without their effect in the database."""
    booked_twice: list[Place] = field(default_factory=list)
    orphans: list[Orphan] = field(default_factory=list)
    """Lanes that nobody owned while somebody served them, the longest first."""
    unexcused: list[Orphan] = field(default_factory=list)
    """Those of them for longer than the promised time after the last fault that touched them."""
    ownerless: list[Lane] = field(default_factory=list)
    """Lanes that nobody owned at the end."""
    silent: list[Fault] = field(default_factory=list)
    """Faults of the broker during which nothing was handled."""
    faults: list[Fault] = field(default_factory=list)
    recoveries: list[tuple[Fault, float]] = field(default_factory=list)
    """Seconds from each fault until everything that was published before it had been handled."""

    @property
    def unexplained(self) -> list[Repeat]:
        return [repeat for repeat in self.repeats if repeat.fault is None]

    @property
    def explained(self) -> Counter[str]:
        """How many repeats each kind of fault explains."""
        return Counter(repeat.fault.kind for repeat in self.repeats if repeat.fault is not None)

    @property
    def longest(self) -> tuple[Fault, float] | None:
        return max(self.recoveries, key=lambda each: each[1], default=None)

    @property
    def kinds(self) -> Counter[str]:
        return Counter(fault.kind for fault in self.faults)

    @property
    def wrong(self) -> list[str]:
        """Everything that must not be, in words."""
        counts = {
            "lost": len(self.lost),
            "unexpected": len(self.unexpected),
            "order violations": len(self.disorder),
            "unexplained duplicates": len(self.unexplained),
            "effects missing": len(self.unbooked),
            "effects twice": len(self.booked_twice),
            "lanes without an owner at the end": len(self.ownerless),
            "lanes without an owner for too long": len(self.unexcused),
            "standing still with the broker": len(self.silent),
        }
        said = [f"{name} {count}" for name, count in counts.items() if count]
        said += [f"not settled in {left.group}: {left}" for left in self.leftovers if not left.clean]
        return [*said, *self.problems, *([] if self.published else ["nothing was published"])]


def judge(
    published: Sequence[Published],
    handled: Sequence[Handling],
    faults: Sequence[Fault],
    groups: Mapping[str, str],
    *,
    ordered: Collection[str] = (),
    vanished: Collection[Place] = (),
    calls: Mapping[str, Mapping[str, Call]] = {},
    unserved: Mapping[str, Sequence[Spell]] = {},
) -> Verdict:
    """Compare what was published with what each group handled.

    `handled`: in the order of time. `groups`: each with its topic. `ordered`: those that keep the order of
    keys. `vanished`: messages that the server has lost. `calls`: worker → group → how it calls the handler,
    where that is not with one message at a time. `unserved`: group → when nobody served it. What the bus says
    of itself, and the effects in the database, the caller adds.
    """
    stored = {(each.topic, each.partition, each.id): each for each in published}
    names = {each.name: each for each in published}
    first: dict[Delivery, Handling] = {}
    for entry in handled:
        if entry.what == "end":
            first.setdefault((entry.group, *place_of(entry)), entry)
    recoveries = [(fault, _recovery(fault, published, first, groups)) for fault in faults]
    return Verdict(
        published=len(published),
        vanished=len(stored.keys() & set(vanished)),
        handled=len(first),
        lost=[
            (group, message)
            for group, topic in groups.items()
            for place, message in stored.items()
            if message.topic == topic and (group, *place) not in first and place not in vanished
        ],
        unexpected=[
            entry
            for entry in handled
            if entry.what == "start"
            and not _is_known(stored.get(place_of(entry)), entry)
            and not _lost_its_receipt(names.get(entry.name), entry, faults)
        ],
        # What the server has lost a frozen worker may have in hand still, long after others went on.
        disorder=_disorder(
            entry for entry in first.values() if entry.group in ordered and place_of(entry) not in vanished
        ),
        repeats=Attribution(published, handled, faults, groups, calls, unserved).repeats(),
        silent=[fault for fault in faults if _is_silent(fault, published, first.values())],
        faults=list(faults),
        recoveries=recoveries,
    )


def book(
    verdict: Verdict, bookings: Iterable[Place], published: Iterable[Place], vanished: Collection[Place]
) -> None:
    """Add what the database says: each message has its effect there once."""
    effects = Counter(bookings)
    verdict.booked_twice = [place for place, count in effects.items() if count > 1]
    verdict.unbooked = [place for place in published if place not in effects and place not in vanished]


def _is_known(message: Published | None, entry: Handling) -> TypeGuard[Published]:
    return message is not None and (message.name, message.key, message.seq) == (
        entry.name, entry.key, entry.seq,
    )  # fmt: skip


def _lost_its_receipt(message: Published | None, entry: Handling, faults: Iterable[Fault]) -> bool:
    """Whether it was stored, and handled, on a server that was lost before its publisher heard of it: so it
    was published once more, on the one that came back."""
    return _is_known(message, entry) and any(
        fault.since is not None and fault.since <= entry.at <= (fault.until or fault.at) <= message.at
        for fault in faults
    )


def _disorder(firsts: Iterable[Handling]) -> list[str]:
    """Where a key of a group went on with a message before an earlier one was done."""
    highest: dict[tuple[str, str, str], Handling] = {}
    found = []
    for entry in firsts:
        key = (entry.group, entry.topic, entry.key)
        last = highest.get(key)
        if last is not None and entry.seq < last.seq:
            found.append(
                f"{entry.group} {entry.key}: {entry.seq} by {entry.worker} after {last.seq} by {last.worker}"
            )
        else:
            highest[key] = entry
    return found


def _is_silent(fault: Fault, published: Iterable[Published], firsts: Iterable[Handling]) -> bool:
    """The broker was frozen, messages came in, and none was handled."""
    if fault.kind != "broker" or fault.until is None:
        return False
    begins, ends = fault.at + BROKER_MATTERS * SECOND, fault.until
    came = any(fault.at <= message.at < begins for message in published)
    return begins < ends and came and not any(begins <= entry.at <= ends for entry in firsts)


def _recovery(
    fault: Fault,
    published: Iterable[Published],
    first: Mapping[Delivery, Handling],
    groups: Mapping[str, str],
) -> float:
    done = (
        first[delivery].at
        for message in published
        if message.at <= fault.at
        for group, topic in groups.items()
        if topic == message.topic
        and (delivery := (group, message.topic, message.partition, message.id)) in first
    )
    return max(0, max(done, default=0) - fault.at) / SECOND
