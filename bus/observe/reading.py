"""Takes a survey, in round trips that do not grow with the number of topics, groups and workers.

    1  the topics and the groups
    2  server, clock, workers, and all partitions with what each group keeps beside them
    3  for groups that lag: their oldest message; for unordered groups: the leases of their lanes
    …  counting, only where a lag cannot be proven (see lag)

Steps 2 and 3 take one more for every facts.COMMANDS_A_WRITE commands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from bus.client import Bus
from bus.format.lane_id import ORDERED_LANE, LaneId
from bus.format.records import Look
from bus.format.worker_record import WorkerTable, read_table
from bus.observe import lag as lags
from bus.observe import members, unheld
from bus.observe.facts import StreamFacts, ask, is_missing, number, stream_command, stream_facts
from bus.observe.info import Info
from bus.observe.loss import LastLoss
from bus.observe.share import Share
from bus.observe.snapshots import GroupPartitionSnapshot
from bus.observe.survey import Survey, Waiting
from bus.operating import delayed
from bus.streams.connect import check, seconds_of
from bus.streams.wire import Command
from bus.topics import reordering
from bus.topics.registry import GroupSpec
from bus.values import TopicSpec

#: Fields of a group's state that are read: first those that are counts.
_COUNTS = ("trimmed", "lost", "lost_maybe", "dead_dropped")
_STATE = (*_COUNTS, "lost_last", reordering.FIELD)


def spec_of(bus: Bus, name: str) -> TopicSpec:
    """Return the spec as Redis has it; unlike registry.spec, restore nothing. Raises as `stored`."""
    return bus.registry.stored(name)


def take_survey(bus: Bus, topic: str | None = None, group: str | None = None) -> Survey:
    """Look at one topic (and only one group of it) or at all, and return what was seen.

    Raises UnknownTopic or UnknownGroup; ForeignData where the record of that topic or group is unreadable.
    """
    look = bus.registry.look()
    if topic is not None and topic not in look.specs:
        spec_of(bus, topic)  # raises, and says why
        look = bus.registry.look()  # it came meanwhile
    topic_specs = [spec for spec in look.specs.values() if topic in (None, spec.name)]
    group_specs = [
        spec
        for spec in look.groups
        if spec.topic in look.specs and topic in (None, spec.topic) and group in (None, spec.name)
    ]
    if topic is not None and group is not None and not group_specs:
        bus.registry.group(topic, group)  # raises, and says why
    return _Reading(bus, look, topic_specs, group_specs).survey()


class _Reading:
    """A survey while it is taken: the steps from 2 on."""

    def __init__(
        self, bus: Bus, look: Look, topic_specs: list[TopicSpec], group_specs: list[GroupSpec]
    ) -> None:
        self._bus = bus
        self._look = look
        self._topic_specs = topic_specs
        self._group_specs = group_specs
        self._streams: dict[str, list[StreamFacts | None]] = {}
        self._waiting: dict[str, list[Waiting]] = {}
        self._shares: list[Share] = []

    def survey(self) -> Survey:
        info, taken, table = self._read_streams()
        self._read_oldest_and_lanes(info)
        records = table.records if table is not None else {}
        suspected = unheld.suspected(records.values())
        snapshots: dict[tuple[str, str], list[GroupPartitionSnapshot]] = {
            (spec.topic, spec.name): [] for spec in self._group_specs
        }
        dropped: dict[tuple[str, str], list[int | None]] = {pair: [] for pair in snapshots}
        leases: dict[LaneId, Any] = {}
        for share in self._shares:
            lane, pair = share.lane, (share.group.topic, share.group.name)
            leases[lane] = share.lease
            share.unheld = lane in suspected and not unheld.is_held(share.holder, records)
            snapshots[pair].append(share.snapshot(taken))
            dropped[pair].append(share.dead_dropped)
        lanes_of = Counter(owner for share in self._shares for owner in share.owners)
        return Survey(
            url=self._bus.endpoint.safe_url,
            taken=taken,
            info=info,
            declared=self._look,
            topic_specs=self._topic_specs,
            group_specs=self._group_specs,
            streams=self._streams,
            waiting=self._waiting,
            shares=snapshots,
            dropped=dropped,
            leases=leases,
            table=table,
            workers=members.workers(records, lanes_of),
        )

    # ------------------------------------------------------------------ step 2

    def _read_streams(self) -> tuple[Info, datetime, WorkerTable | None]:
        key = self._bus.keys.workers
        first: list[Command] = [("INFO",), ("TIME",), ("HGETALL", key)]
        replies = ask(self._bus.client, first + list(self._stream_commands()))
        info, clock, workers = (next(replies) for _ in first)
        for spec, partition, groups in self._partitions():
            stream = stream_facts(next(replies))
            self._streams.setdefault(spec.name, []).append(stream)
            self._waiting.setdefault(spec.name, []).append(_waiting(next(replies), next(replies)))
            for group in groups:
                self._shares.append(self._share(group, partition, stream, replies))
        table = None if is_missing(workers) else read_table(key, check(workers))
        return Info.of(info), datetime.fromtimestamp(seconds_of(clock), UTC), table

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
                yield ("HMGET", keys.state(group.name), *_STATE)
                yield ("GET", keys.lease(group.name, ORDERED_LANE))

    def _partitions(self) -> Iterator[tuple[TopicSpec, int, list[GroupSpec]]]:
        groups_of: dict[str, list[GroupSpec]] = {}
        for group in self._group_specs:
            groups_of.setdefault(group.topic, []).append(group)
        for spec in self._topic_specs:
            for partition in range(spec.partitions):
                yield spec, partition, groups_of.get(spec.name, [])

    def _share(
        self, group: GroupSpec, partition: int, stream: StreamFacts | None, replies: Iterator[Any]
    ) -> Share:
        retrying, held, dead = (number(next(replies)) for _ in range(3))
        state, lease = next(replies), next(replies)
        fields = [state] * len(_STATE) if is_missing(state) else check(state)
        *counts, lost_last, effect = fields
        trimmed, lost, lost_maybe, dead_dropped = map(number, counts)
        ordering = reordering.answer(effect, group.ordering)
        holder = _owner(lease)
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
            lost_last=None if is_missing(lost_last) else LastLoss.load(lost_last),
            dead_dropped=dead_dropped,
            owners=[holder] if holder and ordering != "none" else [],
            lease=lease,
            holder=holder,
        )

    # ------------------------------------------------------------------ step 3 and counting

    def _read_oldest_and_lanes(self, info: Info) -> None:
        keeps_lag = info.keeps_lag
        lagging = [share for share in self._shares if share.prove(keeps_lag=keeps_lag)]
        lanes = list(self._unordered_lanes())
        counts = [share.lag_count() for share in lagging]
        commands: list[Command] = [count.command(1) for count in counts]
        commands += [("GET", lease) for _, lease in lanes]
        replies = ask(self._bus.client, commands)
        for share, count in zip(lagging, counts, strict=True):
            count.take(1, check(next(replies)))
            share.oldest = count.after if count.counted else None
        for (share, _), lease in zip(lanes, replies, strict=True):
            if owner := _owner(lease):
                share.owners.append(owner)
        self._count([pair for pair in zip(lagging, counts, strict=True) if pair[0].lag is None])

    def _unordered_lanes(self) -> Iterator[tuple[Share, str]]:
        for share in self._shares:
            if share.ordering == "none" and share.facts is not None:
                keys = self._bus.keys.partition(share.group.topic, share.partition)
                for lane in share.facts.lanes:
                    yield share, keys.lease(share.group.name, lane)

    def _count(self, unproven: Sequence[tuple[Share, lags.LagCount]]) -> None:
        lags.count(self._bus.client, [count for _, count in unproven])
        for share, count in unproven:
            share.lag = count.lag()


def _owner(lease: Any) -> str | None:
    return None if is_missing(lease) else members.holder(check(lease))


def _waiting(count: Any, first: Any) -> Waiting:
    """Read the replies to ZCARD and to ZRANGE of the first with its score."""
    entry = [] if is_missing(first) else check(first)
    due = float(entry[1]) if entry else delayed.NEVER
    return Waiting(number(count), delayed.moment(due) if due < delayed.NEVER else None)
