"""`Message` ↔ the fields of a stream entry.

    v  the value: JSON, or the bytes as they were given
    e  "raw" if the value was given as bytes; absent for JSON
    k  the key, UTF-8, if there is one
    h  the headers, a JSON object of strings, if there are any

Any Redis tool can read an entry. orjson is strict where the standard library is not: NaN and
infinities are refused here (JSON has none), as are integers beyond 64 bits and lone surrogates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson

from bus.errors import InvalidMessage, Undecodable

_NO_HEADERS: Mapping[str, str] = {}
_RAW = b"raw"


def encode(
    topic: str,
    value: Any,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    max_bytes: int,
) -> list[bytes]:
    """The stream fields of a message, or InvalidMessage that says which part is wrong and why."""
    if isinstance(value, bytes | bytearray | memoryview):
        fields = [b"v", bytes(value), b"e", _RAW]
    else:
        fields = [b"v", _json(topic, value)]
    if key is not None:
        fields += [b"k", _text(topic, "key", key)]
    if headers:
        fields += [b"h", _headers(topic, headers)]
    size = sum(map(len, fields[1::2]))
    if size > max_bytes:
        raise InvalidMessage(
            f"Message for {topic!r} has {size:,} bytes; at most {max_bytes:,} are allowed "
            f"(BUS['MAX_MESSAGE_BYTES']). Store large things elsewhere and publish where they are."
        )
    return fields


def decode(fields: list[bytes]) -> tuple[Any, str | None, Mapping[str, str]]:
    """(value, key, headers) of a stream entry, or Undecodable."""
    if len(fields) == 2 and fields[0] == b"v":
        return _load("value", fields[1]), None, _NO_HEADERS
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    if b"v" not in named:
        names = ", ".join(sorted(name.decode("utf-8", "replace") for name in named)) or "none"
        raise Undecodable(f"The entry has no field 'v' (fields: {names}).")
    value = named[b"v"] if named.get(b"e") == _RAW else _load("value", named[b"v"])
    try:
        key = named[b"k"].decode() if b"k" in named else None
    except UnicodeDecodeError as error:
        raise Undecodable(f"The key is not UTF-8: {error}.") from error
    headers = _load("headers", named[b"h"]) if b"h" in named else _NO_HEADERS
    if not isinstance(headers, dict) and headers is not _NO_HEADERS:
        raise Undecodable("The headers are not a JSON object.")
    return value, key, headers


def _load(part: str, raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Undecodable(f"The {part} is not JSON: {error}.") from error


def _json(topic: str, value: Any) -> bytes:
    try:
        packed = orjson.dumps(value)
    except (orjson.JSONEncodeError, RecursionError) as error:
        where = _offender(value, "value") or f"value: {error}"
        raise InvalidMessage(f"Message for {topic!r} cannot be written as JSON: {where}.") from error
    # orjson writes NaN and infinities as null, which would change the message without a word.
    if b"null" in packed and (where := _not_finite(value, "value")):
        raise InvalidMessage(f"Message for {topic!r} cannot be written as JSON: {where}.")
    return packed


def _offender(value: Any, path: str, depth: int = 0) -> str:
    """The path to the first part that JSON cannot hold, with the reason; "" if none is found."""
    if depth > 200:
        return f"{path} is nested too deeply (is it a cycle?)"
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                return f"{path} has the key {key!r}, which is not a string"
            if found := _offender(item, f"{path}[{key!r}]", depth + 1):
                return found
        return ""
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if found := _offender(item, f"{path}[{index}]", depth + 1):
                return found
        return ""
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        return f"{path} is {type(value).__name__}: {error}"
    return ""


def _not_finite(value: Any, path: str) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path} is {value}, which JSON does not have"
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for name, item in items:
        if found := _not_finite(item, f"{path}[{name!r}]"):
            return found
    return ""


def _text(topic: str, part: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise InvalidMessage(
            f"Message for {topic!r}: the {part} must be a str, not {type(text).__name__} ({text!r}). "
            "Write str(...) around it."
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidMessage(f"Message for {topic!r}: the {part} is not valid Unicode: {error}.") from error


def _headers(topic: str, headers: object) -> bytes:
    if not isinstance(headers, Mapping):
        raise InvalidMessage(
            f"Message for {topic!r}: headers must be a dict of str to str, not {type(headers).__name__}."
        )
    for name, text in headers.items():
        _text(topic, "name of a header", name)
        _text(topic, f"header {name!r}", text)
    return orjson.dumps(dict(headers))
