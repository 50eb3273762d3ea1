"""Filters of dead letters, as people write them on the command line and in addresses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bus.errors import ConfigurationError
from bus.operating import filters
from bus.operating.deadletters import Selection


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("7", 7), (" 12 ", 12), ("007", 7), ("1023", 1023)])
def test_a_partition_is_a_whole_number(text: str, number: int) -> None:
    assert filters.partition(text) == number


@pytest.mark.parametrize("text", ["", " ", "-1", "+1", "1.0", "1e3", "1_0", "x", "٣", "1024", "9" * 5000])
def test_anything_else_is_no_partition(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no partition: write a whole number") as caught:
        filters.partition(text)
    assert len(str(caught.value)) < 300


def test_since_is_how_long_ago_or_a_time_in_utc_where_it_names_no_zone() -> None:
    before = datetime.now(UTC)
    ago = before - filters.since("90m")
    assert timedelta(minutes=89) < ago <= timedelta(minutes=90)
    for read in (filters.since, filters.moment):
        assert read("2030-01-31T12:00+01:00") == datetime(2030, 1, 31, 11, tzinfo=UTC)
        assert read("2030-01-31 12:00") == datetime(2030, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "-5d", "0s", "soon", "5", "d", "2030-13-01", "9" * 5000 + "d"])
def test_what_is_neither_is_refused_and_shown_cut(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is neither a duration") as caught:
        filters.since(text)
    assert len(str(caught.value)) < 400


def test_a_duration_is_no_moment_and_none_reaches_back_before_the_calendar() -> None:
    with pytest.raises(ConfigurationError, match="is no time"):
        filters.moment("5d")
    with pytest.raises(ConfigurationError, match="the calendar had not begun"):
        filters.since("999999d")


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_no_text_is_no_filter_for_reasons_however_it_is_given(text: str) -> None:
    with pytest.raises(ConfigurationError, match="would be found in all"):
        filters.reason(text)
    with pytest.raises(ConfigurationError, match="would be found in all"):
        Selection(reason=text)


def test_nothing_said_never_means_all_and_one_way_is_said_at_a_time() -> None:
    said = [filters.is_said(ids, chosen, every) for ids in (0, 1) for chosen in (0, 1) for every in (0, 1)]
    assert said == [False, True, True, False, True, False, False, False]
