"""Messages as text and as JSON, whatever their bytes are."""

from __future__ import annotations

import base64
from typing import Any

from bus.cli.output import dump
from bus.errors import Undecodable
from bus.values import Message


def key_words(message: Message) -> str:
    """The key; `-` if there is none."""
    key = message.raw.get(b"k")
    return "-" if key is None else key.decode("utf-8", "backslashreplace")


def value_words(message: Message) -> str:
    """The value on one line; bytes that are not UTF-8 are escaped. What cannot be read with the reason."""
    try:
        value = message.value
    except Undecodable as error:
        raw = message.raw.get(b"v", b"").decode("utf-8", "backslashreplace")
        return f"(undecodable: {error}) {raw}".rstrip()
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else dump(value)


def message_record(message: Message) -> dict[str, Any]:
    """Key, headers and value for JSON: bytes in base64, and what cannot be read with the reason."""
    try:
        value, key, headers = message.value, message.key, dict(message.headers)
    except Undecodable as error:
        raw = {name.decode("utf-8", "backslashreplace"): base64.b64encode(part).decode()
               for name, part in message.raw.items()}  # fmt: skip
        return {"key": key_words(message), "undecodable": str(error), "fields_base64": raw}
    if isinstance(value, bytes):
        return {"key": key, "headers": headers, "value_base64": base64.b64encode(value).decode()}
    return {"key": key, "headers": headers, "value": value}
