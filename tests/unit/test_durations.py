"""Durations as people write them and as they read them."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from bus.durations import parse_duration, short, words
from bus.errors import ConfigurationError


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.04, "0s"), (0.44, "0.4s"), (8.9, "8s"), (59, "59s"), (61, "1m 1s"), (192, "3m 12s"),
        (3600, "1h"), (3605, "1h"), (90061, "1d 1h"), (273_600, "3d 4h"), (604_800, "7d"),
    ],
)  # fmt: skip
def test_a_duration_is_told_in_its_two_greatest_units(seconds: float, text: str) -> None:
    assert words(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize("text", ["7d", "36h", "90s", "1500ms", "1m"])
def test_the_short_form_of_a_duration_gives_it_back(text: str) -> None:
    value = parse_duration(text)
    assert value is not None
    assert parse_duration(short(value)) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7d", timedelta(days=7)),
        ("12h", timedelta(hours=12)),
        (" 90 s ", timedelta(seconds=90)),
        ("1.5m", timedelta(seconds=90)),
        ("250ms", timedelta(milliseconds=250)),
        ("2w", timedelta(weeks=2)),
        (30, timedelta(seconds=30)),
        (0.5, timedelta(seconds=0.5)),
        (timedelta(days=1), timedelta(days=1)),
        (None, None),
    ],
    ids=repr,
)
def test_a_duration_can_be_written_in_many_ways(
    text: str | float | timedelta | None, expected: timedelta | None
) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "7", "d", "7 days", "-7d", "1e3s", True, math.nan, math.inf, 1e300, "9" * 400 + "d"],
    ids=repr,
)
def test_what_is_no_duration_is_an_error_with_an_example(text: str | float) -> None:
    with pytest.raises(ConfigurationError, match=r"is not a duration: .* such as '90s'"):
        parse_duration(text)


@pytest.mark.parametrize("text", [0, "0s", -1, timedelta(0), timedelta(days=-1)], ids=repr)
def test_a_duration_is_longer_than_zero(text: str | float | timedelta) -> None:
    with pytest.raises(ConfigurationError, match="longer than zero"):
        parse_duration(text)
