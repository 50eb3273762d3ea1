"""Words and tables of the command line."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bus import durations
from bus.observe import Lag
from bus.terminal.output import Table, answer, count, duration_words, lag_words, many, printable


def test_unknown_is_shown_as_unknown_and_a_count_that_was_cut_short_as_at_least() -> None:
    assert lag_words(None) == "unknown"
    assert lag_words(Lag(0)) == "0"
    assert lag_words(Lag(12_000, exact=False)) == "≥ 12,000"
    assert count(None) == "unknown"


def test_a_duration_is_told_as_on_the_pages_and_an_unknown_one_as_unknown() -> None:
    an_hour = timedelta(seconds=3605)
    assert duration_words(an_hour) == durations.words(an_hour) == "1h"
    assert (duration_words(None), duration_words(None, "for ever")) == ("unknown", "for ever")


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
