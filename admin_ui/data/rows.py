"""What the pages show, as frozen values. None always means unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from admin_ui.data.messages import MessageRow
from admin_ui.data.paging import Page
from admin_ui.data.verdicts import Verdict
from bus.observe import (
    GroupPartitionSnapshot,
    GroupSnapshot,
    Lag,
    PartitionSnapshot,
    ServerSnapshot,
    TopicSnapshot,
    WorkerSnapshot,
)
from bus.operating.declarations import Drift
from bus.safety.unreadable import Unreadable


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group with its verdict."""

    group: GroupSnapshot
    living: int
    """Workers that serve it and are not silent."""
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker; `silent`: how long it has not given a sign of life, None if it has."""

    worker: WorkerSnapshot
    silent: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counters over groups and topics."""

    messages: Lag | None
    lag: Lag | None
    pending: Lag | None
    retrying: Lag | None
    held: Lag | None
    dead: Lag | None
    groups: int


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """Messages that wait in the database, over all databases."""

    rows: Lag
    age: timedelta
    """Of the oldest."""
    late: bool
    """It should have been sent long ago."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewRows:
    """What the first page shows."""

    server: ServerSnapshot
    drift: Sequence[Drift]
    """How code, database and Redis differ about topics, some of it."""
    totals: Totals
    published: int | None
    """Messages ever published, over all topics; from two of these the page shows a rate."""
    topics: int
    workers: int
    silent: int
    """Workers in the table that give no sign of life."""
    missing_partitions: int
    groups: Sequence[GroupRow]
    """The most urgent ones."""
    more_groups: int
    problems: int
    """Groups whose verdict is a problem."""
    unreadable: Sequence[Unreadable]
    """Records of topics and groups that cannot be read, some of them."""
    more_unreadable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicRow:
    """One line of the list of topics."""

    topic: TopicSnapshot
    lag: Lag | None
    groups: Sequence[GroupRow]
    more_groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicsRows:
    """What the list of topics shows."""

    topics: Page[TopicRow]
    known: int
    """Topics before the search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicRows:
    """What the page of a topic shows."""

    topic: TopicSnapshot
    totals: Totals
    groups: Page[GroupRow]
    partitions: Page[PartitionSnapshot]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPartitionRow:
    """One partition of a group, with how far the group has come in it."""

    share: GroupPartitionSnapshot
    percent: int | None
    """Share of the kept messages that the group has been given; None if unknown."""
    owner_silent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRows:
    """What the page of a group shows."""

    group: GroupSnapshot
    living: int
    """Workers that serve it and are not silent."""
    verdict: Verdict
    given: int | None
    """Sum of the offsets: messages given so far. From two of these the page shows a rate."""
    partitions: Page[GroupPartitionRow]
    workers: Sequence[WorkerRow]
    more_workers: int
    losses: Sequence[GroupPartitionSnapshot]
    """Partitions in which messages were removed before they were given."""
    dead_dropped: int | None
    """Dead letters that DEAD_LIMIT has pushed out; None: unknown."""
    read_only: bool
    """The project may only look."""


@dataclass(frozen=True, slots=True)
class MessageRows:
    """The latest messages of a topic, newest first."""

    latest: Sequence[MessageRow]


@dataclass(frozen=True, slots=True)
class WorkerRows:
    """What the list of workers shows."""

    workers: Page[WorkerRow]
