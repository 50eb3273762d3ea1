"""Compares the ledgers with each other and with the faults: what was lost, repeated, or out of order."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.faults import Fault
from tests.chaos.ledger import Handling, Published
from tests.chaos.ownership import Lane, Orphan
from tests.chaos.plan import FREEZES, SERVER_KINDS

SECOND = 1_000_000_000

#: What a process finishes without settling it is at most one batch: what ended within this long before the
#: last message that it finished, and that message. 0.2 s, and as much again for a machine that is busy.
BATCH = SECOND // 2
#: Within so long after a fault, and after what was published before it was handled again, its repeats come.
PROMISE = 20 * SECOND
SLACK = 10 * SECOND

#: After the server is back, what was in hand is settled within so long by the process that had it. So nothing
#: is repeated but what one had that ended meanwhile.
RECONNECT = 5 * SECOND

#: What a process has ended is settled within so long, while the server is there and no other message of the
#: same batch runs on.
UNSETTLED = SECOND

#: These repeat nothing, whatever else happens meanwhile.
CLEAN = frozenset(("stop", "deploy", "broker", "junk"))

#: While the broker answers nobody, messages are handled: at the latest after so long. Seconds.
BROKER_MATTERS = 5

Place = tuple[str, int, str]
"""Where a message is: topic, partition, id."""
Delivery = tuple[str, str, int, str]
"""What is to be handled: group, and place."""


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
class Repeat:
    """A message that was handled to its end once more."""

    again: Handling
    before: list[Handling]
    """Its earlier deliveries that ended."""
    fault: Fault | None = None
    """The fault that explains it; None: nothing does."""


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
    in_hand: Mapping[str, int] = {},
    vanished: Collection[Place] = (),
) -> Verdict:
    """Compare what was published with what each group handled.

    `handled`: in the order of time. `groups`: each with its topic. `ordered`: those that keep the order of
    keys. `in_hand`: how many messages a handler of the group has in hand at once, where that is more than
    one. `vanished`: messages that the server has lost. What the bus says of itself, and the effects in the
    database, the caller adds.
    """
    stored = {(each.topic, each.partition, each.id): each for each in published}
    first: dict[Delivery, Handling] = {}
    for entry in handled:
        if entry.what == "end":
            first.setdefault((entry.group, *_place(entry)), entry)
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
            if entry.what == "start" and not _is_known(stored.get(_place(entry)), entry)
        ],
        # What the server has lost a frozen worker may have in hand still, long after others went on.
        disorder=_disorder(
            entry for entry in first.values() if entry.group in ordered and _place(entry) not in vanished
        ),
        repeats=_Attribution(handled, recoveries, in_hand).repeats(),
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


def _place(entry: Handling) -> Place:
    return entry.topic, entry.partition, entry.id


def _lane(entry: Handling) -> tuple[str, str, int]:
    return entry.group, entry.topic, entry.partition


def _is_known(message: Published | None, entry: Handling) -> bool:
    return message is not None and (message.name, message.key, message.seq) == (
        entry.name, entry.key, entry.seq,
    )  # fmt: skip


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


class _Attribution:
    """Finds the fault for each repeat.

    A repeat is explained if the process that had finished the message before was hit by a fault, had
    finished it within one batch of that, or had it in hand while it was frozen, and the repeat was
    delivered after the fault and within its recovery. Or if the repeat itself is what a frozen process had
    in hand and had not begun.
    """

    def __init__(
        self,
        handled: Sequence[Handling],
        recoveries: Sequence[tuple[Fault, float]],
        in_hand: Mapping[str, int],
    ) -> None:
        self._recoveries = recoveries
        self._in_hand = in_hand
        self._began: dict[Handling, int] = {}
        self._spans: dict[int, list[tuple[Handling, float]]] = defaultdict(list)
        """By process: what began, and when that was over."""
        self._endings: dict[int, list[int]] = defaultdict(list)
        self._ends: dict[Delivery, list[Handling]] = defaultdict(list)
        running: dict[tuple[int, Delivery], tuple[Handling, int]] = {}
        for entry in handled:
            delivery = (entry.group, *_place(entry))
            spans = self._spans[entry.pid]
            if entry.what == "start":
                running[entry.pid, delivery] = entry, len(spans)
                spans.append((entry, math.inf))
                continue
            self._endings[entry.pid].append(entry.at)
            start, number = running[entry.pid, delivery]
            spans[number] = start, entry.at
            if entry.what == "end":
                self._began[entry] = start.at
                self._ends[delivery].append(entry)

    def repeats(self) -> list[Repeat]:
        found = []
        for entries in self._ends.values():
            deliveries = sorted(entries, key=self._began.__getitem__)
            for number, again in enumerate(deliveries[1:], start=1):
                repeat = Repeat(again, deliveries[:number])
                repeat.fault = self._explain(repeat)
                found.append(repeat)
        return found

    def _explain(self, repeat: Repeat) -> Fault | None:
        return next(
            (
                fault
                for fault, recovery in self._recoveries
                for before in repeat.before
                if (self._hit(fault, before) and self._follows(fault, recovery, repeat.again))
                or self._was_about_to_begin(fault, repeat.again)
            ),
            None,
        )

    def _hit(self, fault: Fault, before: Handling) -> bool:
        if fault.kind in CLEAN or fault.worker not in (None, before.worker):
            return False
        if fault.pid not in (None, before.pid):
            return False
        if fault.since is not None and self._was_unsettled(fault.since, before):
            return True
        if fault.kind in FREEZES and fault.until is not None and before.at > fault.until:
            return self._began[before] <= fault.until
        earliest, latest = self._batch(fault, before.pid)
        if fault.worker is None and self._endings[before.pid][-1] > latest:
            return False
        return earliest <= before.at <= latest

    def _was_about_to_begin(self, fault: Fault, again: Handling) -> bool:
        """It was of the call that was in hand, or about to begin, when its process was frozen: the leases are
        looked at before each call, not in it."""
        thawed = fault.until
        if fault.kind not in FREEZES or thawed is None or fault.worker != again.worker:
            return False
        if self._began[again] <= thawed:
            return False
        spans = self._spans[again.pid]
        begun = [start for start, over in spans if start.at <= thawed < over]
        later = [start for start, _ in spans if start.at > thawed]
        lane = _lane([*begun, *later][0])
        call = later[: max(0, self._in_hand.get(lane[0], 1) - len(begun))]
        return any(_lane(each) == _lane(again) == lane and _place(each) == _place(again) for each in call)

    def _was_unsettled(self, at: int, before: Handling) -> bool:
        """Whether a message need not have been settled at the time whose data the server has kept."""
        if before.at >= at - UNSETTLED:
            return True
        known = [ending for ending in self._endings[before.pid] if ending <= at]
        if before.at < self._earliest(known):
            return False
        # It was of the last batch. Then another message of that ran on, or the server was away.
        if any(start.at <= at < over for start, over in self._spans[before.pid]):
            return True
        by = known[-1] + UNSETTLED
        for fault, _ in self._recoveries:
            if fault.kind in SERVER_KINDS and known[-1] <= (fault.until or fault.at) and fault.at <= by:
                by = max(by, (fault.until or fault.at) + RECONNECT)
        return at <= by

    @staticmethod
    def _earliest(known: list[int]) -> int:
        """The first of the last batch that ended, of these endings of a process."""
        return (known[-2] if len(known) > 1 else 0) - BATCH

    def _batch(self, fault: Fault, pid: int) -> tuple[int, int]:
        """When the messages were finished that this process could not settle any more."""
        endings = self._endings[pid]
        known = [at for at in endings if at <= fault.at]
        if fault.worker is None:
            latest = (fault.until or fault.at) + RECONNECT
        elif fault.kind in FREEZES:
            latest = fault.until or endings[-1]
        else:
            known, latest = endings, endings[-1]
        return self._earliest(known), latest

    def _follows(self, fault: Fault, recovery: float, again: Handling) -> bool:
        last = fault.at + max(PROMISE, int(recovery * SECOND)) + SLACK
        return fault.at <= self._began[again] <= last
