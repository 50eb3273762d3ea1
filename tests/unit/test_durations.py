"""Durations as people write them and as they read them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bus.durations import parse_duration, short, words


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
