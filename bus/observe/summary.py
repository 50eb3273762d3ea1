"""A survey as snapshots of topics and groups: sums over partitions."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from bus.moments import moment
from bus.observe import lag as lags
from bus.observe import members
from bus.observe.facts import StreamFacts
from bus.observe.snapshots import GroupPartitionSnapshot, GroupSnapshot, TopicSnapshot
from bus.observe.survey import Survey
from bus.topics.registry import GroupSpec
from bus.values import TopicSpec, id_pair

#: A loss that was found within this time is news.
LATELY = timedelta(days=1)


def topics(survey: Survey) -> list[TopicSnapshot]:
    of_topic: dict[str, list[GroupSnapshot]] = {}
    for snapshot in groups(survey):
        of_topic.setdefault(snapshot.topic, []).append(snapshot)
    return [_topic(survey, spec, of_topic.get(spec.name, [])) for spec in survey.specs]


def groups(survey: Survey) -> list[GroupSnapshot]:
    """All groups that were looked at."""
    return [_group(survey, group) for group in survey.groups]


def _topic(survey: Survey, spec: TopicSpec, groups: list[GroupSnapshot]) -> TopicSnapshot:
    streams = survey.streams[spec.name]
    present = [stream for stream in streams if stream is not None]
    waiting = survey.waiting[spec.name]
    return TopicSnapshot(
        name=spec.name,
        partitions=spec.partitions,
        retention=spec.retention,
        messages=_sum(stream.length for stream in present),
        published=_sum(stream.added for stream in present),
        missing_partitions=len(streams) - len(present),
        last_published=_last_published(present),
        groups=tuple(groups),
        delayed=_sum(one.count for one in waiting),
        next_due=min((one.first for one in waiting if one.first is not None), default=None),
    )


def _group(survey: Survey, spec: GroupSpec) -> GroupSnapshot:
    parts = survey.shares[spec.topic, spec.name]
    former = [part for part in parts if part.ordering != spec.ordering and not part.missing]
    return GroupSnapshot(
        topic=spec.topic,
        group=spec.name,
        ordering=spec.ordering,
        paused=spec.paused,
        lag=lags.total(part.lag for part in parts),
        pending=_sum(part.pending for part in parts),
        retrying=_sum(part.retrying for part in parts),
        held=_sum(part.held for part in parts),
        dead=_sum(part.dead for part in parts),
        time_lag=_time_lag(parts),
        workers=members.serving(survey.records.values(), spec.topic, spec.name),
        lanes=sum(part.lanes for part in parts),
        trimmed=_sum(part.trimmed for part in parts),
        lost=_sum(part.lost for part in parts),
        lost_maybe=_sum(part.lost_maybe for part in parts),
        lost_lately=any(
            part.lost_last is not None and survey.now - part.lost_last.found < LATELY for part in parts
        ),
        missing_partitions=sum(part.missing for part in parts),
        former_ordering=former[0].ordering if former else None,
        unsettled=sum(part.pending or 0 for part in former),
        unheld_partitions=sum(part.unheld for part in parts),
    )


def _sum(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _time_lag(parts: Iterable[GroupPartitionSnapshot]) -> timedelta | None:
    """The greatest; unknown if any partition's is, since that one may be further behind."""
    ages = [part.time_lag for part in parts]
    known = [age for age in ages if age is not None]
    return max(known) if known and len(known) == len(ages) else None


def _last_published(streams: Iterable[StreamFacts]) -> datetime | None:
    ids = [id_pair(stream.last_id) for stream in streams if stream.last_id]
    return moment(max(ids)[0]) if ids else None
