"""Messages made safe to look at: decoded and pretty-printed on the server, every number exact, cut to size.

Nothing is parsed by the browser, whose numbers round beyond 2^53. Numbers pass through as the
characters they are stored as.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import orjson

from bus.format.display import key_of, why_undecodable
from bus.safety.unreadable import escaped, visible, visible_json
from bus.values import Message

#: Characters of a value shown in its row.
PREVIEW = 200

#: Bytes of a value shown when its row is opened.
BODY = 64 * 1024

#: Indentation can blow a deeply nested value up; beyond this it is shown as it is stored.
_PRETTY = 4 * BODY

Kind = Literal["json", "text", "bytes", "undecodable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRow:
    """One message to be shown. Texts are plain: the template escapes them."""

    topic: str
    partition: int
    id: str
    timestamp: datetime
    key: str | None
    headers: Mapping[str, str]
    kind: Kind
    note: str
    """Why the value is not shown as JSON; empty if it is."""
    preview: str
    body: str
    size: int
    """Bytes of the value in Redis."""
    cut: bool
    """True if `body` is only the beginning."""


def message_row(message: Message) -> MessageRow:
    """A message as text, whatever its bytes are; never raises for what a message holds."""
    fields = message.raw
    kind, note, compact, body = _value(message)
    raw = fields.get(b"v", b"")
    key = key_of(message)
    return MessageRow(
        topic=message.topic,
        partition=message.partition,
        id=message.id,
        timestamp=message.timestamp,
        key=None if key is None else _cut(visible(key, keep="\n\t"), PREVIEW),
        headers=_headers(fields.get(b"h")),
        kind=kind,
        note=note,
        preview=_cut(compact, PREVIEW),
        body=body,
        size=len(raw),
        cut=len(raw) > BODY,
    )


def _value(message: Message) -> tuple[Kind, str, str, str]:
    """(kind, note, one line, many lines) of a message."""
    fields = message.raw
    if b"v" not in fields:
        shown = "\n".join(f"{_text(name)}: {_text(value[:BODY])}" for name, value in fields.items())
        return "undecodable", why_undecodable(message), shown, shown[:BODY]
    raw = fields[b"v"]
    if fields.get(b"e") == b"raw":
        return _bytes(raw)
    if len(raw) > BODY:
        shown = _text(raw[:BODY])
        return "json", "", shown, shown
    return _json(message, raw)


def _bytes(raw: bytes) -> tuple[Kind, str, str, str]:
    """A value that was published as bytes: text if it is text, else with its bytes escaped."""
    shown = _text(raw[:BODY])
    if "\\x" in shown and b"\\x" not in raw:
        return "bytes", "Published as bytes.", shown, shown
    return "text", "Published as bytes.", shown, shown


def _json(message: Message, raw: bytes) -> tuple[Kind, str, str, str]:
    """A JSON value, indented. The characters of its numbers are kept."""
    try:
        value: Any = json.loads(raw, parse_int=_number, parse_float=_number, parse_constant=_number)
        compact = visible_json(orjson.dumps(value).decode())
        pretty = visible_json(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    except (ValueError, TypeError, RecursionError) as error:
        shown = _text(raw)
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            return "undecodable", why_undecodable(message) or f"The value is not JSON: {error}.", shown, shown
        return "json", "Shown as it is stored.", shown, shown
    return "json", "", compact, pretty if len(pretty) <= _PRETTY else compact


def _number(digits: str) -> orjson.Fragment:
    return orjson.Fragment(digits.encode())


def _headers(raw: bytes | None) -> Mapping[str, str]:
    """Headers as text; what is no JSON object of them is shown under an empty name."""
    if raw is None:
        return {}
    try:
        headers = json.loads(raw[:BODY], parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        headers = None
    if not isinstance(headers, dict):
        return {"": _cut(_text(raw), PREVIEW)}
    return {
        visible(_cut(name, PREVIEW)): visible(_cut(str(value), PREVIEW)) for name, value in headers.items()
    }


def _text(raw: bytes) -> str:
    """UTF-8, with what is not, and what would not be seen, escaped."""
    return visible(escaped(raw), keep="\n\t")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "…"
