"""Compares the ledgers with each other and with the faults: what was lost, repeated, or out of order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.faults import Fault
from tests.chaos.ledger import Handling, Published

SECOND = 1_000_000_000

#: What a process finishes without settling it is at most one batch: what ended within this long before the
#: last message that it finished, and that message. 0.2 s, and as much again for a machine that is busy.
BATCH = SECOND // 2
#: Within so long after a fault, and after what was published before it was handled again, its repeats come.
PROMISE = 20 * SECOND
SLACK = 10 * SECOND

#: After the server is back, what was in hand is settled within so long.
RECONNECT = 5 * SECOND

#: A clean stop repeats nothing, whatever else happens meanwhile.
CLEAN = frozenset(("stop",))

Place = tuple[str, int, str]


@dataclass(slots=True)
class Leftover:
    """What the bus says of itself after draining, per group. None: it does not know."""

    group: str
    lag: int | None
    pending: int | None
    retrying: int | None
    held: int | None
    dead: int | None

    @property
    def clean(self) -> bool:
        return (self.lag, self.pending, self.retrying, self.held, self.dead) == (0, 0, 0, 0, 0)


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
    handled: int = 0
    lost: list[Published] = field(default_factory=list)
    unexpected: list[Handling] = field(default_factory=list)
    disorder: list[str] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
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
        }
        said = [f"{name} {count}" for name, count in counts.items() if count]
        said += [f"not settled in {left.group}: {left}" for left in self.leftovers if not left.clean]
        return [*said, *self.problems, *([] if self.published else ["nothing was published"])]


def judge(published: Sequence[Published], handled: Sequence[Handling], faults: Sequence[Fault]) -> Verdict:
    """`handled` in the order of time. What the bus says of itself, the caller adds."""
    stored = {(each.topic, each.partition, each.id): each for each in published}
    ends = [entry for entry in handled if entry.what == "end"]
    first: dict[Place, Handling] = {}
    for entry in ends:
        first.setdefault(_place(entry), entry)
    recoveries = [(fault, _recovery(fault, published, first)) for fault in faults]
    return Verdict(
        published=len(published),
        handled=len(first),
        lost=[each for place, each in stored.items() if place not in first],
        unexpected=[
            entry
            for entry in handled
            if entry.what == "start" and not _is_known(stored.get(_place(entry)), entry)
        ],
        disorder=_disorder(first.values()),
        repeats=_Attribution(handled, recoveries).repeats(),
        faults=list(faults),
        recoveries=recoveries,
    )


def _place(entry: Handling) -> Place:
    return entry.topic, entry.partition, entry.id


def _is_known(message: Published | None, entry: Handling) -> bool:
    return message is not None and (message.name, message.key, message.seq) == (
        entry.name, entry.key, entry.seq,
    )  # fmt: skip


def _disorder(firsts: Iterable[Handling]) -> list[str]:
    """Where a key of the ordered topic went on with a message before an earlier one was done."""
    highest: dict[str, Handling] = {}
    found = []
    for entry in firsts:
        if entry.topic != "keyed":
            continue
        last = highest.get(entry.key)
        if last is not None and entry.seq < last.seq:
            found.append(f"{entry.key}: {entry.seq} by {entry.worker} after {last.seq} by {last.worker}")
        else:
            highest[entry.key] = entry
    return found


def _recovery(fault: Fault, published: Sequence[Published], first: dict[Place, Handling]) -> float:
    done = (
        first[each.topic, each.partition, each.id].at
        for each in published
        if each.at <= fault.at and (each.topic, each.partition, each.id) in first
    )
    return max(0, max(done, default=0) - fault.at) / SECOND


class _Attribution:
    """Finds the fault for each repeat.

    A repeat is explained if the process that had finished the message before was hit by a fault, had
    finished it within one batch of that (or had it in hand while it was frozen), and the repeat was
    delivered after the fault and within its recovery.
    """

    def __init__(self, handled: Sequence[Handling], recoveries: Sequence[tuple[Fault, float]]) -> None:
        self._recoveries = recoveries
        self._began: dict[Handling, int] = {}
        self._endings: dict[int, list[int]] = defaultdict(list)
        self._ends: dict[Place, list[Handling]] = defaultdict(list)
        running: dict[int, Handling] = {}
        for entry in handled:
            if entry.what == "start":
                running[entry.pid] = entry
                continue
            self._endings[entry.pid].append(entry.at)
            if entry.what == "end":
                self._began[entry] = running[entry.pid].at
                self._ends[_place(entry)].append(entry)

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
                if self._hit(fault, before) and self._follows(fault, recovery, repeat.again)
            ),
            None,
        )

    def _hit(self, fault: Fault, before: Handling) -> bool:
        if fault.kind in CLEAN or fault.worker not in (None, before.worker):
            return False
        if fault.pid not in (None, before.pid):
            return False
        earliest, latest = self._batch(fault, before.pid)
        return earliest <= before.at <= latest

    def _batch(self, fault: Fault, pid: int) -> tuple[int, int]:
        """When the messages were finished that this process could not settle any more."""
        endings = self._endings[pid]
        known = [at for at in endings if at <= fault.at]
        if fault.worker is None:
            latest = (fault.until or fault.at) + RECONNECT
        elif fault.kind == "freeze":
            # The message in hand is finished after the thaw.
            latest = next((at for at in endings if at > fault.at), fault.at)
        else:
            known, latest = endings, endings[-1]
        return (known[-2] if len(known) > 1 else 0) - BATCH, latest

    def _follows(self, fault: Fault, recovery: float, again: Handling) -> bool:
        last = fault.at + max(PROMISE, int(recovery * SECOND)) + SLACK
        return fault.at <= self._began[again] <= last
