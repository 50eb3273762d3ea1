"""Foreign data as they are shown: one line, visible characters, cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.safety.unreadable import SHOWN, Unreadable, shown, visible, visible_json


@given(st.one_of(st.binary(max_size=1000), st.text(max_size=1000)))
def test_foreign_data_are_shown_as_one_short_line_of_ascii(raw: bytes | str) -> None:
    text = shown(raw)

    assert text.rstrip("…").isascii()
    assert text.isprintable()
    assert len(text) <= SHOWN + 1


def test_what_is_cut_says_so() -> None:
    assert shown("x" * 500).endswith("x…")
    assert shown(b"abc") == "b'abc'"


def test_an_unreadable_record_names_its_key_its_field_and_what_is_wrong() -> None:
    record = Unreadable("bus:workers", "w1", shown(b"{"), "is not JSON")

    assert str(record) == "'bus:workers', field 'w1': b'{' is not JSON"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain", "plain"),
        ("Grüße, 東京, 🚀", "Grüße, 東京, 🚀"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u200b\u2066\ufeff", "a\\u200b\\u2066\\ufeff"),
        ("\x1b[2J\x9b", "\\x1b[2J\\x9b"),
        ("a\u3164b\u2800", "a\\u3164b\\u2800"),
        ("tag \U000e0041", "tag \\U000e0041"),
        ("1\u00a0000", "1\u00a0000"),
        ("line\nend", "line\\x0aend"),
    ],
)
def test_what_would_not_be_seen_is_made_visible_and_nothing_else(text: str, seen: str) -> None:
    assert visible(text) == seen


def test_what_is_to_be_kept_is_kept() -> None:
    assert visible("a\n\tb\u202e", keep="\n\t") == "a\n\tb\\u202e"


JSON = st.recursive(
    st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(JSON)
def test_json_made_visible_is_json_of_the_same_value(value: object) -> None:
    text = visible_json(json.dumps(value, ensure_ascii=False, indent=2))

    assert json.loads(text) == value
    assert visible(text, keep="\n") == text
