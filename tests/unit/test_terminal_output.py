"""Words and tables of the command line."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bus.cli.output import Table, answer, count, duration_words, lag_words, many, printable
from bus.observe import Lag


def test_unknown_is_shown_as_unknown_and_a_count_that_was_cut_short_as_at_least() -> None:
    assert lag_words(None) == "unknown"
    assert lag_words(Lag(0)) == "0"
    assert lag_words(Lag(12_000, exact=False)) == "≥ 12,000"
    assert count(None) == "unknown"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0s"), (0.44, "0.4s"), (59, "59s"), (61, "1m 1s"), (3600, "1h"), (604800, "7d"), (90061, "1d 1h")],
)
def test_durations_are_told_in_their_two_greatest_units(seconds: float, words: str) -> None:
    assert duration_words(timedelta(seconds=seconds)) == words


def test_one_is_not_many() -> None:
    assert (many(1, "message"), many(2000, "message")) == ("1 message", "2,000 messages")


def test_what_could_steer_a_terminal_is_escaped() -> None:
    assert printable("a\x1b[2J\x9b") == "a\\x1b[2J\\x9b"


def test_a_table_that_is_not_for_a_terminal_has_aligned_plain_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer(False, None, Table(["topic", "lag"], [["orders", "7"], ["a", "1,000"]], frozenset({"lag"})))

    assert capsys.readouterr().out == "topic     lag\norders      7\na       1,000\n"


def test_json_holds_durations_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    answer(True, {"retention": timedelta(hours=1)}, "not shown")

    assert capsys.readouterr().out == '{\n  "retention": 3600.0\n}\n'
