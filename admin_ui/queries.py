"""Rows for pages: bounded, sorted and paged. Knows no request and no HTML.

Each function looks once: all that it returns is of one moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from admin_ui.messages import MessageRow, message_row
from admin_ui.paging import Page
from admin_ui.pulse import pulse
from admin_ui.rows import (
    GroupPartitionRow,
    GroupRow,
    GroupRows,
    OutboxRow,
    OverviewRows,
    TopicRow,
    TopicRows,
    TopicsRows,
    Totals,
    WorkerRow,
)
from admin_ui.verdicts import urgency, verdict
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

#: Rows on one page.
TOPICS = 50
PARTITIONS = 64
GROUPS = 100
OVERVIEW_GROUPS = 15
MESSAGES = 25
WORKERS = 100
DRIFTS = 20
UNREADABLE = 20

#: A message that waits longer in the outbox is late: workers look there every 0.5 s.
LATE = timedelta(minutes=1)

_outboxes = Databases(models.OutboxRow)

#: Groups named in one row of the list of topics; the others are counted.
GROUPS_IN_ROW = 3


def overview(bus: Bus) -> OverviewRows:
    """Counters, the server, the groups that need attention first, and how declarations differ."""
    survey = observe.take_survey(bus)
    seen = survey.snapshot()
    workers = worker_rows(seen.workers)
    rows = group_rows(survey.groups, workers)
    return OverviewRows(
        server=seen.server,
        drift=declarations.drift(bus, survey.declared)[:DRIFTS],
        totals=_totals(survey.groups, (topic.messages for topic in seen.topics)),
        published=exact_total(topic.published for topic in seen.topics),
        topics=len(seen.topics),
        workers=sum(row.silent is None for row in workers),
        silent=sum(row.silent is not None for row in workers),
        missing_partitions=sum(topic.missing_partitions for topic in seen.topics),
        groups=rows[:OVERVIEW_GROUPS],
        more_groups=max(0, len(rows) - OVERVIEW_GROUPS),
        problems=sum(row.verdict.problem for row in rows),
        unreadable=seen.unreadable[:UNREADABLE],
        more_unreadable=max(0, len(seen.unreadable) - UNREADABLE),
    )


def outbox(bus: Bus) -> OutboxRow | None:
    """What waits in the outboxes; None if nothing does. Three bounded queries for each database."""
    found = [backlog(bus, alias) for alias in _outboxes.aliases()]
    moments = [each.oldest for each in found if each.oldest is not None]
    if not moments:
        return None
    age = max(timedelta(0), datetime.now(UTC) - min(moments))
    rows = Lag(sum(each.rows for each in found), exact=not any(each.more for each in found))
    return OutboxRow(rows, age, age > LATE)


def topics(bus: Bus, *, search: str = "", order: str = "name", page: str | int | None = 1) -> TopicsRows:
    """Topics whose name contains `search`, sorted by `order` (one of ORDERS, "-" before it reverses)."""
    seen = observe.overview(bus)
    workers = worker_rows(seen.workers)
    wanted = search.strip().casefold()
    found = sorted((one for one in seen.topics if wanted in one.name.casefold()), key=ORDERS["name"])
    by = order.removeprefix("-")
    by, order = (by, order) if by in ORDERS else ("name", "name")
    found.sort(key=ORDERS[by], reverse=order.startswith("-"))
    part = Page.of(found, page, TOPICS)
    rows = Page(
        [_topic_row(one, workers) for one in part.rows], part.number, part.pages, part.total, part.first
    )
    return TopicsRows(page=rows, known=len(seen.topics), search=search.strip(), order=order)


def topic(bus: Bus, name: str, *, page: str | int | None = 1, groups: str | int | None = 1) -> TopicRows:
    """One topic with its groups and partitions. Raises UnknownTopic."""
    survey = observe.take_survey(bus, name)
    (seen,) = survey.topics
    rows = group_rows(seen.groups, worker_rows(survey.workers))
    return TopicRows(
        topic=seen,
        totals=_totals(seen.groups, [seen.messages]),
        groups=Page.of(rows, groups, GROUPS),
        partitions=Page.of(survey.partitions(name), page, PARTITIONS),
    )


def messages(bus: Bus, name: str, *, count: int = MESSAGES) -> list[MessageRow]:
    """The latest messages of a topic, newest first. Raises UnknownTopic."""
    return [message_row(message) for message in observe.latest(bus, name, count)]


def group(bus: Bus, name: str, group_name: str, *, page: str | int | None = 1) -> GroupRows:
    """One group with its partitions and workers. Raises UnknownTopic or UnknownGroup."""
    survey = observe.take_survey(bus, name, group_name)
    seen, partitions = survey.group(name, group_name)
    workers = [row for row in worker_rows(survey.workers) if serves(row, name, group_name)]
    silent = frozenset(row.worker.incarnation for row in workers if row.silent is not None)
    rows = [
        GroupPartitionRow(partition=one, percent=percent_given(one), owner_silent=one.owner in silent)
        for one in partitions
    ]
    return GroupRows(
        row=group_rows([seen], workers)[0],
        given=exact_total(one.offset for one in partitions),
        partitions=Page.of(rows, page, PARTITIONS),
        workers=workers[:WORKERS],
        more_workers=max(0, len(workers) - WORKERS),
        losses=[one for one in partitions if one.lost_last is not None][:PARTITIONS],
        dead_dropped=survey.dead_dropped(name, group_name),
    )


def workers(bus: Bus, *, page: str | int | None = 1) -> Page[WorkerRow]:
    """The workers, those that started last first."""
    found = worker_rows(observe.workers(bus))
    return Page.of(sorted(found, key=lambda row: row.worker.started, reverse=True), page, WORKERS)


def worker_rows(workers: Iterable[WorkerSnapshot]) -> list[WorkerRow]:
    """Workers with how long they have been silent, as far as this process has watched them."""
    known = list(workers)
    silent = pulse.look(known)
    return [
        WorkerRow(one, timedelta(seconds=silent[one.incarnation]) if one.incarnation in silent else None)
        for one in known
    ]


def serves(row: WorkerRow, topic: str, group: str) -> bool:
    """True if the worker serves this group."""
    if row.worker.serves is not None:
        return f"{topic}/{group}" in row.worker.serves
    return row.worker.groups is None or group in row.worker.groups


def group_rows(groups: Iterable[GroupSnapshot], workers: Sequence[WorkerRow]) -> list[GroupRow]:
    """Groups with their verdicts, the most urgent first."""
    rows = []
    for one in groups:
        silent = sum(row.silent is not None and serves(row, one.topic, one.group) for row in workers)
        living = max(0, one.workers - silent)
        rows.append(GroupRow(one, living, verdict(one, living)))
    return sorted(rows, key=lambda row: urgency(row.group, row.verdict))


def percent_given(partition: GroupPartitionSnapshot) -> int | None:
    """How much of the messages that lie between the start and the end the group has been given, in %."""
    if partition.offset is None or partition.end is None:
        return None
    if partition.end <= 0:
        return 100
    return max(0, min(100, partition.offset * 100 // partition.end))


def _by_lag(seen: TopicSnapshot) -> int:
    found = total(one.lag for one in seen.groups)
    return found.count if found else -1


#: What the list of topics can be sorted by.
ORDERS: dict[str, Callable[[TopicSnapshot], Any]] = {
    "name": lambda seen: seen.name,
    "partitions": lambda seen: seen.partitions,
    "messages": lambda seen: -1 if seen.messages is None else seen.messages,
    "lag": _by_lag,
    "published": lambda seen: seen.last_published.timestamp() if seen.last_published else 0.0,
}


def _topic_row(seen: TopicSnapshot, workers: Sequence[WorkerRow]) -> TopicRow:
    groups = group_rows(seen.groups, workers)
    return TopicRow(
        topic=seen,
        lag=total(one.lag for one in seen.groups) if groups else None,
        groups=groups[:GROUPS_IN_ROW],
        more_groups=max(0, len(groups) - GROUPS_IN_ROW),
    )


def _totals(groups: Iterable[GroupSnapshot], messages: Iterable[int | None]) -> Totals:
    known = list(groups)
    return Totals(
        messages=total(messages),
        lag=total(one.lag for one in known),
        pending=total(one.pending for one in known),
        retrying=total(one.retrying for one in known),
        held=total(one.held for one in known),
        dead=total(one.dead for one in known),
        groups=len(known),
    )
