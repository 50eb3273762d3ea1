"""Messages as rows: exact, safe, cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from admin_ui.data.messages import BODY, PREVIEW, MessageRow, message_row
from bus.format import codec
from bus.values import Message


def row(*fields: bytes) -> MessageRow:
    return message_row(Message("orders", 3, "1700000000123-4", list(fields), codec.decode))


def value(text: str) -> MessageRow:
    return row(b"v", text.encode())


@pytest.mark.parametrize(
    "digits", ["9007199254740993", "123456789012345678901234567890", "0.1000000000000000055", "1e400", "-0"]
)
def test_numbers_keep_their_digits(digits: str) -> None:
    shown = value(f'{{"n": {digits}}}')

    assert shown.kind == "json"
    assert shown.preview == f'{{"n":{digits}}}'
    assert shown.body == f'{{\n  "n": {digits}\n}}'


def test_where_and_when_come_from_the_id() -> None:
    shown = value("1")

    assert (shown.topic, shown.partition, shown.id) == ("orders", 3, "1700000000123-4")
    assert shown.timestamp.timestamp() == 1700000000.123


def test_a_long_value_is_cut_in_its_row_and_whole_when_opened() -> None:
    shown = value(json.dumps("x" * 1000))

    assert len(shown.preview) == PREVIEW + 1
    assert shown.preview.endswith("…")
    assert len(shown.body) == 1002
    assert not shown.cut


def test_a_huge_value_is_cut_and_says_so() -> None:
    shown = value(json.dumps("x" * (2 * BODY)))

    assert shown.cut
    assert len(shown.body) == BODY
    assert shown.size == 2 * BODY + 2


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ((b"v", b"{broken"), "undecodable", "{broken"),
        ((b"v", b"\xff\xfe"), "undecodable", r"\xff\xfe"),
        ((b"other", b"\x00x"), "undecodable", r"other: \x00x"),
        ((), "undecodable", ""),
        ((b"v", b"\x89PNG", b"e", b"raw"), "bytes", r"\x89PNG"),
        ((b"v", b"plain", b"e", b"raw"), "text", "plain"),
        ((b"v", b""), "undecodable", ""),
    ],
)
def test_what_is_not_json_is_shown_as_it_is(fields: tuple[bytes, ...], kind: str, text: str) -> None:
    shown = row(*fields)

    assert (shown.kind, shown.preview) == (kind, text)
    assert shown.note


@pytest.mark.parametrize("text", ["[" * 300 + "]" * 300, "[" * 20_000 + "]" * 20_000, '"\\ud800"', "NaN"])
def test_strange_json_is_shown_and_never_raises(text: str) -> None:
    shown = value(text)

    assert shown.body
    assert len(shown.body) <= 4 * BODY


def test_indentation_cannot_blow_a_value_up() -> None:
    deep: Any = [1] * 10_000
    for _ in range(200):
        deep = [deep]

    assert len(value(json.dumps(deep)).body) <= 4 * BODY


def test_key_and_headers_are_text_whatever_their_bytes() -> None:
    fine = row(b"v", b"1", b"k", "ключ".encode(), b"h", b'{"tenant":"de","n":9007199254740993}')
    odd = row(b"v", b"1", b"k", b"\xff", b"h", b"[1]")

    assert (fine.key, fine.headers) == ("ключ", {"tenant": "de", "n": "9007199254740993"})
    assert (odd.key, odd.headers) == (r"\xff", {"": "[1]"})
