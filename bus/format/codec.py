"""Encodes messages as the fields of a stream entry, and decodes them.

    v  the value: JSON, or the bytes as they were given
    e  "raw" if the value was given as bytes; no field for JSON
    k  the key, UTF-8, if there is one
    h  the headers, a JSON object of strings, if there are any
    g  of a dead letter that was retried after its original was trimmed: the one group that it is for

Any Redis tool can read an entry. orjson is strict where the standard library is not: NaN and
infinities are refused here (JSON has none), as are integers beyond 64 bits and lone surrogates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import orjson

from bus.errors import InvalidMessage, Undecodable
from bus.safety.unreadable import SHOWN, shown
from bus.values import Decoded, Message, is_name

#: Name of the field of a copy that is for one group alone; always the last.
FOR_GROUP = b"g"

#: Bytes of values that are decoded ahead at most: some 5 ms of work, during which a slice looks up nothing,
#: and a few MB of objects.
AHEAD_BYTES = 256 * 1024

_RAW = b"raw"

#: orjson gives up at 254 levels.
_TOO_DEEP = 250


def encode(
    topic: str,
    value: Any,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    max_bytes: int,
) -> list[bytes]:
    """Return the stream fields of a message, of at most `max_bytes`.

    Raises InvalidMessage, which says what part is wrong and why.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        fields = [b"v", bytes(value), b"e", _RAW]
        marker = len(_RAW)
    else:
        fields = [b"v", _json(topic, value)]
        marker = 0
    if key is not None:
        fields += [b"k", _text(topic, "key", key)]
    if headers:
        fields += [b"h", _headers(topic, headers)]
    size = sum(map(len, fields[1::2])) - marker
    if size > max_bytes:
        raise InvalidMessage(
            f"Message for {topic!r} has {size:,} bytes; at most {max_bytes:,} are allowed "
            f"(BUS['MAX_MESSAGE_BYTES']). Store large things elsewhere and publish where they are."
        )
    return fields


def decode_ahead(messages: Iterable[Message]) -> None:
    """Decode messages that are about to be read, in half the time of one by one.

    It decodes messages that are a JSON value, perhaps with a key, as nearly all are, up to AHEAD_BYTES. It
    leaves the others, and those that cannot be decoded, to `decode`, which says what is wrong.
    """
    loads, room = orjson.loads, AHEAD_BYTES
    for message in messages:
        fields = message._fields
        count = len(fields)
        if count == 4:
            name, value, second, key = fields
            if second != b"k":
                continue
        elif count == 2:
            (name, value), key = fields, None
        else:
            continue
        if name != b"v":
            continue
        room -= len(value)
        if room < 0:
            return
        try:
            message._value = loads(value), None if key is None else key.decode(), None
        except (ValueError, MemoryError):
            continue


def raw_key(message: Message) -> bytes | None:
    """Return the key as bytes, also of a message that cannot be decoded; None if it has none."""
    fields = message._fields
    if len(fields) == 4 and fields[0] == b"v" and fields[2] == b"k":
        return fields[3]
    return message.raw.get(b"k")


def is_group(name: bytes) -> bool:
    """Return whether these bytes can be the name of a group."""
    return is_name(name.decode("ascii", "replace"))


def decode(fields: list[bytes]) -> Decoded:
    """Return (value, key, headers) of a stream entry. Raises Undecodable."""
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    if b"v" not in named:
        names = ", ".join(shown(name, 50) for name in sorted(named)[:10]) or "none"
        raise Undecodable(f"The entry has no field 'v' (fields: {names}).")
    if fields[-2] == FOR_GROUP and not is_group(fields[-1]):
        raise Undecodable(f"The entry is for the group {shown(fields[-1])}, which no group can be named.")
    value = named[b"v"] if named.get(b"e") == _RAW else _load("The value is", named[b"v"])
    try:
        key = named[b"k"].decode() if b"k" in named else None
    except UnicodeDecodeError as error:
        raise Undecodable(f"The key is not UTF-8: {error}.") from error
    return value, key, _load_headers(named[b"h"]) if b"h" in named else {}


def _load_headers(raw: bytes) -> Mapping[str, str]:
    headers = _load("The headers are", raw)
    if not isinstance(headers, dict) or not all(isinstance(text, str) for text in headers.values()):
        raise Undecodable("The headers are not a JSON object of strings.")
    return headers


def _load(part: str, raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Undecodable(f"{part} not JSON: {error}.") from error


def _json(topic: str, value: Any) -> bytes:
    try:
        packed = orjson.dumps(value)
    except (orjson.JSONEncodeError, RecursionError) as error:
        where = _offender(value, "value") or f"value: {error}"
        raise InvalidMessage(f"Message for {topic!r} cannot be written as JSON: {where}.") from error
    if packed.find(b"null") >= 0:
        check_finite(topic, value)
    return packed


def check_finite(topic: str, value: Any) -> None:
    """Raise InvalidMessage, with the path, if a value holds NaN or an infinity.

    Only JSON with a "null" needs this: orjson writes them as null, which would change the message in silence.
    """
    if where := _not_finite(value, "value"):
        raise InvalidMessage(f"Message for {topic!r} cannot be written as JSON: {where}.")


def _offender(value: Any, path: str, above: tuple[int, ...] = ()) -> str:
    """Return the path to the first part that JSON cannot hold, with the reason; "" if there is none."""
    if id(value) in above:
        return f"{path} is a cycle: it is the same object as one that holds it"
    if len(above) > _TOO_DEEP:
        return f"{path[:100]}… is nested too deeply"
    inside = (*above, id(value))
    if isinstance(value, dict):
        for key in value:
            if reason := _bad_key(key):
                return f"{path} has the key {repr(key)[:SHOWN]}, which {reason}"
    if not isinstance(value, dict | list | tuple) and not _is_record(value):
        return _bad_leaf(value, path)
    reasons = (_offender(item, f"{path}[{name!r}]", inside) for name, item in _items(value))
    return next(filter(None, reasons), "")


def _bad_key(key: object) -> str:
    if type(key) is not str:
        return f"is not a str but {type(key).__name__}"
    return "is not valid Unicode" if _bad_leaf(key, "") else ""


def _bad_leaf(value: Any, path: str) -> str:
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        return f"{path} is {type(value).__name__}: {error}"
    return ""


def _not_finite(value: Any, path: str) -> str:
    """Return the path to the first NaN or infinity, with the reason; "" if there is none."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path} is {value}, which JSON does not have"
    reasons = (_not_finite(item, f"{path}[{name!r}]") for name, item in _items(value))
    return next(filter(None, reasons), "")


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return the (key or index, item) pairs in a value, in the order of orjson."""
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, list | tuple):
        return enumerate(value)
    if _is_record(value):
        names = (field.name for field in dataclasses.fields(value))
        return ((name, getattr(value, name)) for name in names if not name.startswith("_"))
    return ()


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


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
    # orjson wants keys that are exactly str, not a subclass such as Django's SafeString.
    return orjson.dumps({str.__str__(name): str.__str__(text) for name, text in headers.items()})
