"""Shows messages to people, on the pages and on the command line alike, whatever their bytes are.

Numbers keep the characters they are stored as: nothing here or in a browser rounds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from bus.errors import Undecodable
from bus.safety.unreadable import escaped, visible, visible_json
from bus.values import Message

Kind = Literal["json", "text", "bytes", "undecodable"]

#: Indentation can blow a deeply nested value up; beyond so many times its limit it is shown as it is stored.
_PRETTY = 4
#: Bytes of a value that are read where nothing else is said, and of headers; characters of a header.
_MOST, _HEADERS, _HEADER = 1 << 30, 64 * 1024, 200

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class ShownValue:
    """The value of a message as text."""

    kind: Kind
    note: str
    """Why it is not shown as JSON, or why handlers cannot be given it; "" if neither is so."""
    line: str
    """On one line, unless it is text or cannot be decoded."""
    body: str
    """On many lines."""
    undecodable: bool = False
    """Handlers cannot be given the message. Not known of values beyond the limit, which are not decoded."""


def shown_value(message: Message, most: int = _MOST, *, pretty: bool = True) -> ShownValue:
    """Return the value as text; of one of more than `most` bytes its beginning. Raises nothing.

    `pretty`: JSON has many lines in its body.
    """
    fields = message.raw
    if b"v" not in fields:
        text = "\n".join(f"{_text(name)}: {_text(value[:most])}" for name, value in fields.items())
        return ShownValue("undecodable", why_undecodable(message), text, text[:most], undecodable=True)
    raw = fields[b"v"]
    why = why_undecodable(message) if len(raw) <= most else ""
    if fields.get(b"e") == b"raw":
        shown = _bytes(raw, most)
    elif len(raw) > most:
        text = _text(raw[:most])
        shown = ShownValue("json", "", text, text)
    else:
        shown = _json(raw, most, pretty)
    if shown.kind == "undecodable":
        why = why or shown.note
    return ShownValue(shown.kind, why or shown.note, shown.line, shown.body, undecodable=bool(why))


def key_of(message: Message) -> str | None:
    """Return the key as text; None if there is none."""
    key = message.raw.get(b"k")
    return None if key is None else escaped(key)


def headers_of(message: Message) -> Mapping[str, str]:
    """Return the headers as text; what is no JSON object of them stands under an empty name."""
    raw = message.raw.get(b"h")
    if raw is None:
        return {}
    try:
        headers = json.loads(raw[:_HEADERS], parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        headers = None
    if not isinstance(headers, dict):
        return {"": cut(_text(raw), _HEADER)}
    return {visible(cut(name, _HEADER)): visible(cut(str(value), _HEADER)) for name, value in headers.items()}


def why_undecodable(message: Message) -> str:
    """Return why a message cannot be decoded, as a sentence; "" if it can. Handlers are told the same."""
    try:
        message.value  # noqa: B018 - decodes all of it
    except Undecodable as error:
        return str(error)
    return ""


def cut(text: str, most: int) -> str:
    """Return the text, or its first `most` characters and an ellipsis."""
    return text if len(text) <= most else f"{text[:most]}…"


def size_of(count: float) -> tuple[str, str]:
    """Return a number of bytes as a number and its binary unit: ("1.5", "KiB")."""
    unit = 0
    while count >= 1024 and unit < len(_SIZES) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.1f}" if unit and count < 100 else f"{count:.0f}", _SIZES[unit]


def _bytes(raw: bytes, most: int) -> ShownValue:
    """A value that was published as bytes: text if it is text, else with its bytes escaped."""
    text = _text(raw[:most])
    is_text = "\\x" not in text or b"\\x" in raw
    return ShownValue("text" if is_text else "bytes", "Published as bytes.", text, text)


def _json(raw: bytes, most: int, pretty: bool) -> ShownValue:
    """A JSON value, indented. The characters of its numbers are kept."""
    try:
        value: Any = json.loads(raw, parse_int=_number, parse_float=_number, parse_constant=_number)
        line = visible_json(orjson.dumps(value).decode())
        body = visible_json(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()) if pretty else line
    except (ValueError, TypeError, RecursionError) as error:
        text = _text(raw)
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            return ShownValue("undecodable", f"The value is not JSON: {error}.", text, text)
        return ShownValue("json", "Shown as it is stored.", text, text)
    return ShownValue("json", "", line, body if len(body) <= _PRETTY * most else line)


def _number(digits: str) -> orjson.Fragment:
    return orjson.Fragment(digits.encode())


def _text(raw: bytes) -> str:
    """UTF-8, with what is not, and what would not be seen, escaped."""
    return visible(escaped(raw), keep="\n\t")
