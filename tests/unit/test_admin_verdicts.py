"""One word for a group, and which groups come first."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from admin_ui.data import verdicts
from admin_ui.data.paging import Page
from admin_ui.data.pulse import SILENCE, Pulse
from admin_ui.data.verdicts import Verdict, urgency, verdict
from bus.observe import GroupSnapshot, Lag, WorkerSnapshot

QUIET = GroupSnapshot(
    topic="orders",
    group="inventory",
    ordering="key",
    paused=False,
    lag=Lag(0),
    pending=0,
    retrying=0,
    held=0,
    dead=0,
    time_lag=timedelta(0),
    workers=1,
)


@pytest.mark.parametrize(
    ("changes", "workers", "expected"),
    [
        ({}, 1, verdicts.OK),
        ({}, 0, verdicts.OK),
        ({"lag": Lag(3)}, 1, verdicts.BEHIND),
        ({"pending": 3}, 1, verdicts.WORKING),
        ({"lag": Lag(3)}, 0, verdicts.NO_WORKERS),
        ({"pending": 3, "retrying": 1}, 0, verdicts.NO_WORKERS),
        ({"lag": None}, 1, verdicts.UNKNOWN),
        ({"lag": Lag(3), "retrying": 1}, 1, verdicts.RETRYING),
        ({"retrying": 1, "held": 4}, 1, verdicts.HELD_BACK),
        ({"dead": 1}, 1, verdicts.DEAD),
        ({"lost": 4, "lost_lately": True, "dead": 1}, 1, verdicts.LOST),
        ({"lost": 4, "dead": 1}, 1, verdicts.DEAD),
        ({"paused": True, "lag": Lag(9)}, 0, verdicts.PAUSED),
        ({"missing_partitions": 1}, 1, verdicts.MISSING),
    ],
)
def test_the_most_urgent_truth_is_told(changes: dict[str, Any], workers: int, expected: Verdict) -> None:
    assert verdict(replace(QUIET, **changes), workers) == expected


def test_problems_come_first_then_the_greatest_lag() -> None:
    groups = [
        replace(QUIET, group="fine"),
        replace(QUIET, group="behind", lag=Lag(10)),
        replace(QUIET, group="further", lag=Lag(90)),
        replace(QUIET, group="retrying", retrying=1),
    ]

    ordered = sorted(groups, key=lambda one: urgency(one, verdict(one, 1)))

    assert [one.group for one in ordered] == ["retrying", "further", "behind", "fine"]


def worker(name: str, beat: int) -> WorkerSnapshot:
    return WorkerSnapshot(
        incarnation=name,
        host="h",
        pid=1,
        started=datetime(2026, 1, 1, tzinfo=UTC),
        beat=beat,
        groups=None,
        processes=2,
        lanes=0,
    )


def test_a_worker_is_silent_only_after_its_beat_was_watched_to_stand_still() -> None:
    now = [100.0]
    pulse = Pulse(lambda: now[0])

    assert pulse.look([worker("a", 7), worker("b", 7)]) == {}
    now[0] += SILENCE
    assert pulse.look([worker("a", 7), worker("b", 8)]) == {"a": SILENCE}
    now[0] += 1
    assert pulse.look([worker("a", 8), worker("b", 8)]) == {}


def test_nothing_follows_from_silence_while_redis_was_away() -> None:
    now = [100.0]
    pulse = Pulse(lambda: now[0])
    pulse.look([worker("a", 7)])

    pulse.forget()
    now[0] += 100

    assert pulse.look([worker("a", 7)]) == {}


@pytest.mark.parametrize(
    ("wanted", "number", "rows"),
    [
        (None, 1, [0, 1, 2]),
        ("2", 2, [3, 4, 5]),
        ("3", 3, [6]),
        ("99", 3, [6]),
        ("-1", 1, [0, 1, 2]),
        ("x", 1, [0, 1, 2]),
    ],
)
def test_a_page_that_does_not_exist_becomes_the_nearest(
    wanted: str | None, number: int, rows: list[int]
) -> None:
    page = Page.of(range(7), wanted, 3)

    assert (page.number, list(page.rows), page.pages) == (number, rows, 3)
    assert (page.first, page.last) == (rows[0] + 1, rows[-1] + 1)


def test_an_empty_list_has_one_empty_page() -> None:
    page = Page.of([], None, 3)

    assert (page.number, page.pages, page.first, page.last, page.previous, page.next) == (
        1,
        1,
        0,
        0,
        None,
        None,
    )
