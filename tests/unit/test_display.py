"""A message looks the same on the pages and on the command line."""

from __future__ import annotations

import orjson
import pytest

from admin_ui.data.messages import message_row
from bus.format import codec
from bus.format.display import cut, size_of
from bus.terminal.values import headers_words, key_words, message_record, value_words
from bus.values import Message


def message(*fields: bytes) -> Message:
    return Message("orders", 3, "1700000000123-4", list(fields), codec.decode)


@pytest.mark.parametrize(
    "fields", [(b"v", b"{broken"), (b"v", b"\xff\xfe", b"k", b"A1"), (b"other", b"\x00x"), ()], ids=repr
)
def test_what_cannot_be_decoded_is_called_so_with_the_same_reason(fields: tuple[bytes, ...]) -> None:
    page, record = message_row(message(*fields)), message_record(message(*fields))
    assert page.kind == "undecodable"
    assert page.note == record["undecodable"] != ""
    assert value_words(message(*fields)).startswith(f"(undecodable: {page.note})")
    assert set(record) == {"key", "undecodable", "fields_base64"}


@pytest.mark.parametrize("key", [b"A1", "ключ".encode(), b"\xff"])
def test_keys_are_the_same_text(key: bytes) -> None:
    one = message(b"v", b"1", b"k", key)
    assert key_words(one) == message_row(one).key


@pytest.mark.parametrize(
    "fields",
    [
        (b"v", b'{"n": 123456789012345678901234567890, "x": 0.1000000000000000055}'),
        (b"v", b'"\xe2\x80\xae"'),
        (b"v", b"plain", b"e", b"raw"),
        (b"v", b"\x89PNG", b"e", b"raw"),
    ],
    ids=repr,
)
def test_values_are_the_same_text_with_every_digit(fields: tuple[bytes, ...]) -> None:
    assert value_words(message(*fields)) == message_row(message(*fields)).preview


@pytest.mark.parametrize("headers", [b'{"tenant":"de","run":"1"}', b"[1]", b"{broken", b"\xff"])
def test_headers_are_the_same_text(headers: bytes) -> None:
    one = message(b"v", b"1", b"h", headers)
    shown = message_row(one).headers
    words = headers_words(one)
    assert words == shown[""] if "" in shown else orjson.loads(words) == shown


@pytest.mark.parametrize(
    "fields", [(b"v", b"1e400"), (b"v", b"1", b"h", b"[1]"), (b"v", b"1", b"k", b"\xff")]
)
def test_what_handlers_cannot_be_given_is_called_so_on_both_though_its_value_is_json(
    fields: tuple[bytes, ...],
) -> None:
    page = message_row(message(*fields))
    assert page.undecodable
    assert value_words(message(*fields)) == f"(undecodable: {page.note}) {page.preview}"


def test_text_is_cut_to_its_limit_and_sizes_are_binary() -> None:
    assert (cut("abc", 3), cut("abcd", 3)) == ("abc", "abc…")
    assert [size_of(count) for count in (0, 1023, 1536, 300 * 1024, 2**50)] == [
        ("0", "B"), ("1023", "B"), ("1.5", "KiB"), ("300", "KiB"), ("1024", "TiB"),
    ]  # fmt: skip
