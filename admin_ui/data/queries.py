"""Makes the rows of pages: bounded, sorted and paged. Knows no request and no HTML.

Each function looks once: all that it returns is of one moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from admin_ui.data.messages import message_row
from admin_ui.data.paging import Page
from admin_ui.data.pulse import pulse
from admin_ui.data.rows import (
    GroupPartitionRow,
    GroupRow,
    GroupRows,
    MessageRows,
    OutboxRow,
    OverviewRows,
    TopicRow,
    TopicRows,
    TopicsRows,
    Totals,
    WorkerRow,
    WorkerRows,
)
from admin_ui.data.verdicts import urgency, verdict
from bus import models, observe
from bus.client import Bus
from bus.databases import Databases
from bus.observe import (
    GroupPartitionSnapshot,
    GroupSnapshot,
    Lag,
    TopicSnapshot,
    WorkerSnapshot,
)
from bus.operating import declarations
from bus.sums import exact_total, total
from bus.transactions.outbox import backlog

#: Rows of each kind on one page.
TOPICS_A_PAGE = 50
PARTITIONS_A_PAGE = 64
GROUPS_A_PAGE = 100
GROUPS_ON_OVERVIEW = 15
MESSAGES_A_PAGE = 25
WORKERS_A_PAGE = 100
DRIFTS_ON_OVERVIEW = 20
UNREADABLE_ON_OVERVIEW = 20

#: A message that waits longer in the outbox is late: workers look there every 0.5 s.
LATE = timedelta(minutes=1)

_outboxes = Databases(models.OutboxRow)

#: Groups named in one row of the list of topics; the others are counted.
GROUPS_A_ROW = 3


def overview(bus: Bus) -> OverviewRows:
    """Return counters, the server, the groups that need attention first, and how declarations differ."""
    survey = observe.take_survey(bus)
    workers = worker_rows(survey.workers)
    rows = group_rows(survey.groups, workers)
    return OverviewRows(
        server=survey.server,
        drift=declarations.drift(bus, survey.declared)[:DRIFTS_ON_OVERVIEW],
        totals=_totals(survey.groups, (topic.messages for topic in survey.topics)),
        published=exact_total(topic.published for topic in survey.topics),
        topics=len(survey.topics),
        workers=sum(row.silent is None for row in workers),
        silent=sum(row.silent is not None for row in workers),
        missing_partitions=sum(topic.missing_partitions for topic in survey.topics),
        groups=rows[:GROUPS_ON_OVERVIEW],
        more_groups=max(0, len(rows) - GROUPS_ON_OVERVIEW),
        problems=sum(row.verdict.problem for row in rows),
        unreadable=survey.unreadable[:UNREADABLE_ON_OVERVIEW],
        more_unreadable=max(0, len(survey.unreadable) - UNREADABLE_ON_OVERVIEW),
    )


def outbox(bus: Bus) -> OutboxRow | None:
    """Return what waits in the outboxes; None if nothing does. Three bounded queries for each database."""
    backlogs = [backlog(bus, alias) for alias in _outboxes.aliases()]
    moments = [waiting.oldest for waiting in backlogs if waiting.oldest is not None]
    if not moments:
        return None
    age = max(timedelta(0), datetime.now(UTC) - min(moments))
    rows = total(Lag(waiting.rows, exact=not waiting.more) for waiting in backlogs) or Lag(0)
    return OutboxRow(rows, age, age > LATE)


def topics(bus: Bus, *, search: str = "", order: str = "name", page: str | int | None = 1) -> TopicsRows:
    """Return topics whose name contains `search`, sorted by `order`, one of ORDERS ("-": reversed)."""
    survey = observe.take_survey(bus)
    workers = worker_rows(survey.workers)
    part = search.strip().casefold()
    topics = sorted((topic for topic in survey.topics if part in topic.name.casefold()), key=ORDERS["name"])
    by = order.removeprefix("-")
    by, order = (by, order) if by in ORDERS else ("name", "name")
    topics.sort(key=ORDERS[by], reverse=order.startswith("-"))
    shown = Page.of(topics, page, TOPICS_A_PAGE)
    return TopicsRows(topics=shown.map(lambda topic: _topic_row(topic, workers)), known=len(survey.topics))


def topic(bus: Bus, name: str, *, page: str | int | None = 1, groups: str | int | None = 1) -> TopicRows:
    """Return one topic with its groups and partitions. Raises UnknownTopic."""
    survey = observe.take_survey(bus, name)
    (snapshot,) = survey.topics
    rows = group_rows(snapshot.groups, worker_rows(survey.workers))
    return TopicRows(
        topic=snapshot,
        totals=_totals(snapshot.groups, [snapshot.messages]),
        groups=Page.of(rows, groups, GROUPS_A_PAGE),
        partitions=Page.of(survey.partitions(name), page, PARTITIONS_A_PAGE),
    )


def messages(bus: Bus, name: str, *, count: int = MESSAGES_A_PAGE) -> MessageRows:
    """Return the latest messages of a topic, newest first. Raises UnknownTopic."""
    return MessageRows([message_row(message) for message in observe.latest(bus, name, count)])


def group(bus: Bus, name: str, group_name: str, *, page: str | int | None = 1) -> GroupRows:
    """Return one group with its partitions and workers. Raises UnknownTopic or UnknownGroup."""
    survey = observe.take_survey(bus, name, group_name)
    snapshot, shares = survey.group(name, group_name)
    workers = [row for row in worker_rows(survey.workers) if serves(row, name, group_name)]
    silent = frozenset(row.worker.incarnation for row in workers if row.silent is not None)
    rows = [
        GroupPartitionRow(share=share, percent=percent_given(share), owner_silent=share.owner in silent)
        for share in shares
    ]
    (row,) = group_rows([snapshot], workers)
    return GroupRows(
        group=snapshot,
        living=row.living,
        verdict=row.verdict,
        given=exact_total(share.offset for share in shares),
        partitions=Page.of(rows, page, PARTITIONS_A_PAGE),
        workers=workers[:WORKERS_A_PAGE],
        more_workers=max(0, len(workers) - WORKERS_A_PAGE),
        losses=[share for share in shares if share.lost_last is not None][:PARTITIONS_A_PAGE],
        dead_dropped=survey.dead_dropped(name, group_name),
        read_only=bus.settings.read_only,
    )


def workers(bus: Bus, *, page: str | int | None = 1) -> WorkerRows:
    """Return the workers, those that started last first."""
    rows = worker_rows(observe.workers(bus))
    newest_first = sorted(rows, key=lambda row: row.worker.started, reverse=True)
    return WorkerRows(Page.of(newest_first, page, WORKERS_A_PAGE))


def worker_rows(workers: Iterable[WorkerSnapshot]) -> list[WorkerRow]:
    """Return workers with how long they have been silent, as far as this process has watched them."""
    snapshots = list(workers)
    silent = pulse.look(snapshots)
    return [
        WorkerRow(worker, timedelta(seconds=silent[name]) if (name := worker.incarnation) in silent else None)
        for worker in snapshots
    ]


def serves(row: WorkerRow, topic: str, group: str) -> bool:
    """Return whether the worker serves this group."""
    if row.worker.serves is not None:
        return f"{topic}/{group}" in row.worker.serves
    return row.worker.groups is None or group in row.worker.groups


def group_rows(groups: Iterable[GroupSnapshot], workers: Sequence[WorkerRow]) -> list[GroupRow]:
    """Return groups with their verdicts, the most urgent first."""
    rows = []
    for snapshot in groups:
        topic, name = snapshot.topic, snapshot.name
        silent = sum(row.silent is not None and serves(row, topic, name) for row in workers)
        living = max(0, snapshot.workers - silent)
        rows.append(GroupRow(snapshot, living, verdict(snapshot, living)))
    return sorted(rows, key=lambda row: urgency(row.group, row.verdict))


def percent_given(partition: GroupPartitionSnapshot) -> int | None:
    """Return how many of the messages of a partition the group has been given, in %."""
    if partition.offset is None or partition.end is None:
        return None
    if partition.end <= 0:
        return 100
    return max(0, min(100, partition.offset * 100 // partition.end))


def _by_lag(topic: TopicSnapshot) -> int:
    lag = total(group.lag for group in topic.groups)
    return lag.count if lag is not None and topic.groups else -1


#: What the list of topics can be sorted by.
ORDERS: dict[str, Callable[[TopicSnapshot], Any]] = {
    "name": lambda topic: topic.name,
    "partitions": lambda topic: topic.partitions,
    "messages": lambda topic: -1 if topic.messages is None else topic.messages,
    "lag": _by_lag,
    "published": lambda topic: topic.last_published.timestamp() if topic.last_published else 0.0,
}


def _topic_row(topic: TopicSnapshot, workers: Sequence[WorkerRow]) -> TopicRow:
    groups = group_rows(topic.groups, workers)
    return TopicRow(
        topic=topic,
        lag=total(group.lag for group in topic.groups) if groups else None,
        groups=groups[:GROUPS_A_ROW],
        more_groups=max(0, len(groups) - GROUPS_A_ROW),
    )


def _totals(groups: Sequence[GroupSnapshot], messages: Iterable[int | None]) -> Totals:
    return Totals(
        messages=total(messages),
        lag=total(group.lag for group in groups),
        pending=total(group.pending for group in groups),
        retrying=total(group.retrying for group in groups),
        held=total(group.held for group in groups),
        dead=total(group.dead for group in groups),
        groups=len(groups),
    )
