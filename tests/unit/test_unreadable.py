"""Foreign data as they are shown: one line, visible characters, cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.unreadable import SHOWN, Unreadable, shown


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
