"""When the demo is settled, and what its status line says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bus.observe import BusSnapshot, GroupSnapshot, Lag, ServerSnapshot, TopicSnapshot
from demo.status import GROUPS, Status

NOW = datetime(2026, 1, 1, tzinfo=UTC)


NO_LAG = Lag(0)


def overview(
    published: int = 10, lag: Lag | None = NO_LAG, pending: int = 0, groups: tuple[str, ...] = GROUPS
) -> BusSnapshot:
    def topic(name: str) -> TopicSnapshot:
        return TopicSnapshot(
            name=name, partitions=1, retention=None, messages=published, published=published,
            missing_partitions=0, last_published=None,
            groups=tuple(group(full) for full in groups if full.startswith(f"{name}/")),
        )  # fmt: skip

    def group(full: str) -> GroupSnapshot:
        name, _, group = full.partition("/")
        return GroupSnapshot(
            topic=name, group=group, ordering="key", paused=False, lag=lag, pending=pending, retrying=0,
            held=0, dead=1, time_lag=None, workers=1,
        )  # fmt: skip

    server = ServerSnapshot(
        url="", kind="Valkey", version="9", used_memory=0, max_memory=0, uptime=timedelta(seconds=1)
    )
    names = sorted({full.partition("/")[0] for full in GROUPS})
    return BusSnapshot(server=server, topics=tuple(map(topic, names)), workers=(), taken=NOW)


def test_it_is_settled_when_no_group_has_anything_left() -> None:
    assert Status.of(overview()).settled


@pytest.mark.parametrize(
    "unsettled",
    [
        overview(lag=Lag(1)),
        overview(pending=1),
        overview(lag=None),
        overview(lag=Lag(0, exact=False)),
        overview(groups=GROUPS[:-1]),
    ],
    ids=["lag", "pending", "unknown", "inexact", "a group that nobody serves yet"],
)
def test_it_is_not_settled_while_anything_is_left_or_unknown(unsettled: BusSnapshot) -> None:
    assert not Status.of(unsettled).settled


def test_the_line_has_rates_since_the_look_before() -> None:
    # given  30 messages in three topics, then 60, two seconds later
    before = Status.of(overview(published=10))
    later = Status.of(replace(overview(published=20, lag=Lag(1)), taken=NOW + timedelta(seconds=2)))

    line = later.line(before)

    assert " ".join(line.split()) == "published 15/s handled 18/s lag 4 pending 0 dead 4"


def test_a_lag_that_is_not_exact_is_shown_as_at_least() -> None:
    assert "lag    ≥ 8" in Status.of(overview(lag=Lag(2, exact=False))).line(None)
