"""One look at topics, groups and workers, in round trips that do not grow with their number.

    1  the topics      2  the groups
    3  server, clock, workers, and all partitions with what each group keeps beside them
    4  for groups that lag: their oldest message; for unordered groups: the leases of their lanes
    …  counting, only where a lag cannot be proven (see lag)

Steps 3 and 4 take one more for every facts.PIPELINE commands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bus.client import Bus
from bus.format.worker_record import WorkerRecord, read_table
from bus.observe import lag as lags
from bus.observe import members, unheld
from bus.observe.facts import StreamFacts, ask, is_absent, number, stream_command, stream_facts
from bus.observe.info import Info
from bus.observe.loss import LastLoss
from bus.observe.share import Share
from bus.observe.snapshots import GroupPartitionSnapshot, WorkerSnapshot
from bus.operating import delayed
from bus.safety.unreadable import Unreadable
from bus.streams.connect import check, seconds_of
from bus.streams.wire import Command
from bus.topics import reordering
from bus.topics.registry import GroupSpec
from bus.values import TopicSpec

#: The lane of an ordered group, whoever owns it.
_ORDERED_LANE = "0"

#: Fields of a group's state that are shown.
_COUNTED = ("trimmed", "lost", "lost_maybe", "lost_last", reordering.FIELD)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in one partition until it is due."""

    count: int | None
    first: datetime | None

    @classmethod
    def read(cls, count: Any, first: Any) -> Waiting:
        """From the replies to ZCARD and to ZRANGE of the first with its score."""
        known = [] if is_absent(first) else check(first)
        due = float(known[1]) if known else delayed.NEVER
        return cls(number(count), delayed.moment(due) if due < delayed.NEVER else None)


@dataclass(frozen=True, slots=True)
class Survey:
    """What was seen."""

    now: datetime
    """By the server's clock."""
    info: Info
    specs: list[TopicSpec]
    groups: list[GroupSpec]
    streams: Mapping[str, list[StreamFacts | None]]
    """Topic → its partitions."""
    unreadable: tuple[Unreadable, ...]
    """Records of topics and groups that cannot be read; they are not among specs and groups."""
    waiting: Mapping[str, list[Waiting]]
    """Topic → its partitions."""
    shares: Mapping[tuple[str, str], list[GroupPartitionSnapshot]]
    """(topic, group) → its partitions."""
    workers: tuple[WorkerSnapshot, ...]
    records: Mapping[str, WorkerRecord]
    """Incarnation → what the worker says of itself."""


def spec_of(bus: Bus, name: str) -> TopicSpec:
    """The spec as Redis has it; unlike registry.spec this restores nothing. Raises as registry.stored."""
    return bus.registry.stored(name)


def take(bus: Bus, topic: str | None = None, group: str | None = None) -> Survey:
    """Look at one topic (and only one group of it) or at all.

    Raises UnknownTopic, or ForeignData where the record of that topic or group cannot be read.
    """
    look = bus.registry.look()
    if topic is not None and topic not in look.specs:
        spec_of(bus, topic)  # raises, and says why
        look = bus.registry.look()  # it came meanwhile
    specs = [spec for spec in look.specs.values() if topic in (None, spec.name)]
    groups = [
        spec
        for spec in look.groups
        if spec.topic in look.specs and topic in (None, spec.topic) and group in (None, spec.name)
    ]
    if topic is not None and group is not None and not groups:
        bus.registry.group(topic, group)
    return _Reading(bus, specs, groups, look.unreadable).survey()


class _Reading:
    """The steps from 3 on."""

    def __init__(
        self, bus: Bus, specs: list[TopicSpec], groups: list[GroupSpec], unreadable: list[Unreadable]
    ) -> None:
        self._bus = bus
        self._unreadable = tuple(unreadable)
        self._specs = specs
        self._groups = groups
        self._streams: dict[str, list[StreamFacts | None]] = {}
        self._waiting: dict[str, list[Waiting]] = {}
        self._shares: list[Share] = []

    def survey(self) -> Survey:
        info, now, table = self._read_streams()
        self._read_oldest_and_lanes(info)
        held = Counter(owner for share in self._shares for owner in share.owners)
        records = read_table(self._bus.keys.workers, table).records
        suspected = unheld.suspected(records.values())
        for share in self._shares:
            share.unheld = (
                bool(suspected) and share.lane in suspected and not unheld.is_held(share.holder, records)
            )
        shares: dict[tuple[str, str], list[GroupPartitionSnapshot]] = {
            (group.topic, group.name): [] for group in self._groups
        }
        for share in self._shares:
            shares[share.group.topic, share.group.name].append(share.snapshot(now))
        workers = members.workers(records, held)
        seen = self._streams, self._unreadable, self._waiting
        return Survey(now, info, self._specs, self._groups, *seen, shares, workers, records)

    # ------------------------------------------------------------------ step 3

    def _read_streams(self) -> tuple[Info, datetime, Any]:
        first: list[Command] = [("INFO",), ("TIME",), ("HGETALL", self._bus.keys.workers)]
        replies = ask(self._bus.client, first + list(self._stream_commands()))
        info, now, workers = (next(replies) for _ in first)
        table = [] if is_absent(workers) else workers
        for spec, partition, groups in self._partitions():
            stream = stream_facts(next(replies))
            self._streams.setdefault(spec.name, []).append(stream)
            waiting = Waiting.read(next(replies), next(replies))
            self._waiting.setdefault(spec.name, []).append(waiting)
            for group in groups:
                self._shares.append(self._share(group, partition, stream, replies))
        return Info.of(info), datetime.fromtimestamp(seconds_of(now), UTC), check(table)

    def _stream_commands(self) -> Iterator[Command]:
        for spec, partition, groups in self._partitions():
            keys = self._bus.keys.partition(spec.name, partition)
            yield stream_command(keys.stream)
            yield ("ZCARD", keys.delayed)
            yield ("ZRANGE", keys.delayed, 0, 0, "WITHSCORES")
            for group in groups:
                yield ("ZCARD", keys.retry(group.name))
                yield ("ZCARD", keys.held(group.name))
                yield ("XLEN", keys.dead(group.name))
                yield ("HMGET", keys.state(group.name), *_COUNTED)
                yield ("GET", keys.lease(group.name, _ORDERED_LANE))

    def _partitions(self) -> Iterator[tuple[TopicSpec, int, list[GroupSpec]]]:
        of_topic: dict[str, list[GroupSpec]] = {}
        for group in self._groups:
            of_topic.setdefault(group.topic, []).append(group)
        for spec in self._specs:
            for partition in range(spec.partitions):
                yield spec, partition, of_topic.get(spec.name, [])

    def _share(
        self, group: GroupSpec, partition: int, stream: StreamFacts | None, replies: Iterator[Any]
    ) -> Share:
        retrying, held, dead = (number(next(replies)) for _ in range(3))
        counted = next(replies)
        counted = [counted] * len(_COUNTED) if is_absent(counted) else check(counted)
        trimmed, lost, lost_maybe = (number(each) for each in counted[:3])
        lease = next(replies)
        ordering = reordering.answer(counted[4], group.ordering)
        holder = _owner(lease)
        owner = None if ordering == "none" else holder
        return Share(
            group=group,
            ordering=ordering,
            partition=partition,
            key=self._bus.keys.partition(group.topic, partition).stream,
            stream=stream,
            facts=stream.groups.get(group.name) if stream else None,
            retrying=retrying,
            held=held,
            dead=dead,
            trimmed=trimmed,
            lost=lost,
            lost_maybe=lost_maybe,
            lost_last=None if is_absent(counted[3]) else LastLoss.load(counted[3]),
            owners=[owner] if owner else [],
            holder=holder,
        )

    # ------------------------------------------------------------------ step 4 and counting

    def _read_oldest_and_lanes(self, info: Info) -> None:
        keeps_lag = info.keeps_lag
        inside = [share for share in self._shares if share.prove(keeps_lag=keeps_lag)]
        lanes = list(self._unordered_lanes())
        tallies = [share.tally() for share in inside]
        commands: list[Command] = [tally.command(1) for tally in tallies]
        commands += [("GET", lease) for _, lease in lanes]
        replies = ask(self._bus.client, commands)
        for share, tally in zip(inside, tallies, strict=True):
            tally.take(1, check(next(replies)))
            share.oldest = tally.after if tally.found else None
        for (share, _), lease in zip(lanes, replies, strict=True):
            if owner := _owner(lease):
                share.owners.append(owner)
        self._count([pair for pair in zip(inside, tallies, strict=True) if pair[0].lag is None])

    def _unordered_lanes(self) -> Iterator[tuple[Share, str]]:
        for share in self._shares:
            if share.ordering == "none" and share.facts is not None:
                keys = self._bus.keys.partition(share.group.topic, share.partition)
                for lane in share.facts.lanes:
                    yield share, keys.lease(share.group.name, lane)

    def _count(self, unproven: Sequence[tuple[Share, lags.Tally]]) -> None:
        lags.count(self._bus.client, [tally for _, tally in unproven])
        for share, tally in unproven:
            share.lag = tally.lag()


def _owner(lease: Any) -> str | None:
    return None if is_absent(lease) else members.holder(check(lease))
