"""A message looks the same on the pages and on the command line."""

from __future__ import annotations

import pytest

from admin_ui.data.messages import message_row
from bus.format import codec
from bus.terminal.values import key_words, message_record, value_words
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
