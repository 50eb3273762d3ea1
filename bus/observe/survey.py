"""The result of one look: topics, groups and workers at one moment, with their sums.

A page or a command takes one survey (see reading), and makes from it whatever it shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from bus.errors import UnknownGroup
from bus.format.lane_id import LaneId
from bus.format.records import Look
from bus.format.worker_record import WorkerTable
from bus.moments import moment
from bus.observe import members
from bus.observe.facts import StreamFacts, partition_snapshot
from bus.observe.info import Info
from bus.observe.snapshots import (
    BusSnapshot,
    GroupPartitionSnapshot,
    GroupSnapshot,
    PartitionSnapshot,
    ServerSnapshot,
    TopicSnapshot,
    WorkerSnapshot,
)
from bus.safety.unreadable import Unreadable
from bus.sums import exact_total, known_total, total
from bus.topics.registry import GroupSpec
from bus.values import TopicSpec, id_pair

#: A loss that was found within this time is news.
LATELY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in one partition until it is due."""

    count: int | None
    first: datetime | None


@dataclass(frozen=True)
class Survey:
    """What one look saw of one topic or group, or of all."""

    url: str
    """Of the server, without a password."""
    taken: datetime
    """When, by the server's clock."""
    info: Info
    declared: Look
    """All topics and groups of the bus, and which of their records cannot be read."""
    topic_specs: Sequence[TopicSpec]
    """The topics that were looked at."""
    group_specs: Sequence[GroupSpec]
    """The groups that were looked at."""
    streams: Mapping[str, Sequence[StreamFacts | None]]
    """Topic → its partitions; None for a stream that is missing."""
    waiting: Mapping[str, Sequence[Waiting]]
    """Topic → its partitions."""
    shares: Mapping[tuple[str, str], Sequence[GroupPartitionSnapshot]]
    """(topic, group) → its partitions."""
    dropped: Mapping[tuple[str, str], Sequence[int | None]]
    """(topic, group) → dead letters that DEAD_LIMIT has pushed out, in each partition."""
    leases: Mapping[LaneId, Any]
    """Home of a partition → the reply to GET of its lease."""
    table: WorkerTable | None
    """The table of workers; None if its key holds something else."""
    workers: Sequence[WorkerSnapshot]

    @property
    def unreadable(self) -> Sequence[Unreadable]:
        """Records of topics and groups that cannot be read: what they are of is not in the survey."""
        return self.declared.unreadable

    @cached_property
    def topics(self) -> Sequence[TopicSnapshot]:
        """The topics that were looked at, by name."""
        groups_of: dict[str, list[GroupSnapshot]] = {}
        for group in self.groups:
            groups_of.setdefault(group.topic, []).append(group)
        return tuple(self._topic(spec, groups_of.get(spec.name, [])) for spec in self.topic_specs)

    @cached_property
    def groups(self) -> Sequence[GroupSnapshot]:
        """The groups that were looked at."""
        return tuple(self._group(spec) for spec in self.group_specs)

    def partitions(self, topic: str) -> list[PartitionSnapshot]:
        """The partitions of a topic that was looked at, in order."""
        return [partition_snapshot(topic, number, facts) for number, facts in enumerate(self.streams[topic])]

    def group(self, topic: str, group: str) -> tuple[GroupSnapshot, Sequence[GroupPartitionSnapshot]]:
        """One group, and its partitions in order. Raises UnknownGroup for one that was not looked at."""
        for snapshot in self.groups:
            if (snapshot.topic, snapshot.group) == (topic, group):
                return snapshot, self.shares[topic, group]
        raise UnknownGroup(topic, group)

    def dead_dropped(self, topic: str, group: str) -> int | None:
        """Dead letters of a group that DEAD_LIMIT has pushed out, ever; None if that cannot be read."""
        return exact_total(self.dropped[topic, group])

    @property
    def server(self) -> ServerSnapshot:
        """The server behind the bus."""
        return self.info.snapshot(self.url)

    def snapshot(self) -> BusSnapshot:
        """The server, the topics with their groups, and the workers."""
        return BusSnapshot(
            server=self.server,
            topics=tuple(self.topics),
            workers=tuple(self.workers),
            taken=self.taken,
            unreadable=tuple(self.unreadable),
        )

    def _topic(self, spec: TopicSpec, groups: Sequence[GroupSnapshot]) -> TopicSnapshot:
        streams, waiting = self.streams[spec.name], self.waiting[spec.name]
        present = [stream for stream in streams if stream is not None]
        return TopicSnapshot(
            name=spec.name,
            partitions=spec.partitions,
            retention=spec.retention,
            messages=known_total(None if stream is None else stream.length for stream in streams),
            published=known_total(None if stream is None else stream.added for stream in streams),
            missing_partitions=len(streams) - len(present),
            last_published=_last_published(present),
            groups=tuple(groups),
            delayed=known_total(partition.count for partition in waiting),
            next_due=min((partition.first for partition in waiting if partition.first), default=None),
        )

    def _group(self, spec: GroupSpec) -> GroupSnapshot:
        shares = self.shares[spec.topic, spec.name]
        former = [share for share in shares if share.ordering != spec.ordering and not share.missing]
        records = self.table.records.values() if self.table is not None else ()
        losses = [(share.lost_last, share.partition) for share in shares if share.lost_last is not None]
        last, place = max(losses, key=lambda loss: loss[0].found, default=(None, None))
        return GroupSnapshot(
            topic=spec.topic,
            group=spec.name,
            ordering=spec.ordering,
            paused=spec.paused,
            lag=total(share.lag for share in shares),
            pending=known_total(share.pending for share in shares),
            retrying=known_total(share.retrying for share in shares),
            held=known_total(share.held for share in shares),
            dead=known_total(share.dead for share in shares),
            time_lag=_time_lag(shares),
            workers=members.serving(records, spec.topic, spec.name),
            lanes=sum(share.lanes for share in shares),
            trimmed=known_total(share.trimmed for share in shares),
            lost=known_total(share.lost for share in shares),
            lost_maybe=known_total(share.lost_maybe for share in shares),
            lost_lately=last is not None and self.taken - last.found < LATELY,
            lost_last=last,
            lost_last_partition=place,
            missing_partitions=sum(share.missing for share in shares),
            former_ordering=former[0].ordering if former else None,
            unsettled=sum(share.pending or 0 for share in former),
            unheld_partitions=sum(share.unheld for share in shares),
        )


def _time_lag(shares: Iterable[GroupPartitionSnapshot]) -> timedelta | None:
    """Return the greatest; unknown if that of any partition is, since that one may be further behind."""
    ages = [share.time_lag for share in shares]
    known_ages = [age for age in ages if age is not None]
    return max(known_ages) if known_ages and len(known_ages) == len(ages) else None


def _last_published(streams: Iterable[StreamFacts]) -> datetime | None:
    ids = [id_pair(stream.last_id) for stream in streams if stream.last_id]
    return moment(max(ids)[0]) if ids else None
