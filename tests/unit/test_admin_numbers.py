"""Numbers, durations and times on the pages; unknown is a dash, never 0."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from admin_ui.data.queries import percent_given
from admin_ui.templatetags.jitney import amount, duration, size, some, when
from bus.observe import GroupPartitionSnapshot, Lag


def plain(html: str) -> str:
    return re.sub(r"<[^>]+>", "", html).replace("&nbsp;", " ")


def test_amounts_are_grouped_and_unknown_is_a_dash() -> None:
    assert plain(amount(1234567)) == "1,234,567"
    assert plain(amount(0)) == "0"
    assert plain(amount(Lag(1204))) == "1,204"
    assert plain(amount(Lag(5000, exact=False))) == "≥ 5,000"
    assert "—" in amount(None)
    assert "unknown" in amount(None)


def test_unknown_counts_as_worth_a_look() -> None:
    assert [some(one) for one in (0, Lag(0), 1, Lag(1), None)] == [False, False, True, True, True]


def test_sizes_are_binary_and_times_have_milliseconds_in_their_title() -> None:
    assert plain(size(1536)) == "1.5 KiB"
    assert plain(size(10)) == "10 B"
    shown = when(datetime(2026, 11, 22, 13, 5, 2, 345_000, tzinfo=UTC))
    assert plain(shown) == "2026-11-22 13:05:02"
    assert "13:05:02.345 UTC" in shown
    assert "—" in duration(None)
    assert "—" in when(None)
    assert "—" in size(None)


@pytest.mark.parametrize(
    ("offset", "end", "percent"), [(0, 0, 100), (5, 10, 50), (0, 9, 0), (None, 9, None), (12, 10, 100)]
)
def test_progress_lies_between_0_and_100_or_is_unknown(
    offset: int | None, end: int | None, percent: int | None
) -> None:
    snapshot = GroupPartitionSnapshot(
        topic="orders",
        partition=0,
        group="inventory",
        missing=False,
        position=None,
        offset=offset,
        end=end,
        lag=None,
        pending=None,
        retrying=None,
        held=None,
        dead=None,
        trimmed=None,
        owner=None,
    )
    assert percent_given(snapshot) == percent
