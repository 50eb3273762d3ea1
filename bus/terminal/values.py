"""Shows messages as text and as JSON, whatever their bytes are."""

from __future__ import annotations

import base64
from typing import Any

from bus.format.display import headers_of, key_of, shown_value, why_undecodable
from bus.safety.unreadable import escaped
from bus.terminal.output import dump
from bus.values import Message


def key_words(message: Message) -> str:
    """Return the key; `-` if there is none."""
    key = key_of(message)
    return "-" if key is None else key


def value_words(message: Message) -> str:
    """Return the value on one line, with the reason where it cannot be decoded. Bytes are escaped."""
    value = shown_value(message, pretty=False)
    return f"(undecodable: {value.note}) {value.line}".rstrip() if value.undecodable else value.line


def headers_words(message: Message) -> str:
    """Return the headers as one line of JSON, or what is stored in their place; `-` if there is nothing."""
    headers = headers_of(message)
    if not headers:
        return "-"
    return headers[""] if "" in headers else dump(headers)


def message_record(message: Message) -> dict[str, Any]:
    """Return key, headers and value for JSON: bytes in base64, what cannot be decoded with the reason."""
    if why := why_undecodable(message):
        fields = {escaped(name): base64.b64encode(part).decode() for name, part in message.raw.items()}
        return {"key": key_words(message), "undecodable": why, "fields_base64": fields}
    about = {"key": message.key, "headers": dict(message.headers)}
    if isinstance(message.value, bytes):
        return {**about, "value_base64": base64.b64encode(message.value).decode()}
    return {**about, "value": message.value}
