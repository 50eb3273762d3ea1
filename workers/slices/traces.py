"""Makes what is kept and logged of an exception: never more than a little, and never an error of its own."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

from bus.format.state import MAX_ERROR

#: Bytes of a text that are kept: a character has up to four.
MAX_BYTES = MAX_ERROR


def clipped(text: object) -> str:
    """Return the beginning and the end of a text, as UTF-8 can hold it, in MAX_BYTES bytes at most."""
    whole = _text(text)
    raw = whole[: MAX_BYTES + 1].encode("utf-8", "replace")
    if len(whole) <= MAX_BYTES and len(raw) <= MAX_BYTES:
        return raw.decode()
    mark = f" … ({len(whole):,} characters) … "
    half = (MAX_BYTES - len(mark.encode())) // 2
    end = whole[-half:].encode("utf-8", "replace")[-half:].decode("utf-8", "ignore")
    return raw[:half].decode("utf-8", "ignore") + mark + end


def reason(error: BaseException) -> str:
    """Return a reason like `ValueError: no`, also for an exception whose own text cannot be made."""
    try:
        return clipped(f"{type(error).__name__}: {error}")
    except BaseException:
        return name(error)


def name(error: object) -> str:
    """Return the name of an exception's type, whatever that is."""
    try:
        return clipped(type(error).__name__)
    except BaseException:
        return "an exception without a name"


def kept(error: BaseException) -> str:
    """Return the traceback to keep: where it began, and the end, which says where it broke."""
    try:
        return clipped("".join(traceback.format_exception(error)))
    except BaseException:  # such as a SyntaxError whose line is no text
        frames = "".join(traceback.format_tb(error.__traceback__))
        return clipped(f"Traceback (most recent call last):\n{frames}{reason(error)}\n")


def exc_info(error: BaseException | None) -> Any:
    """For a line of the log. An error whose text is far too long is replaced by one with less of it, and so
    is one whose traceback cannot be made."""
    if error is None:
        return None
    if all(len(_text(cause)) <= MAX_BYTES for cause in _chain(error)) and _can_be_shown(error):
        return type(error), error, error.__traceback__
    short = type(type(error).__name__, (Exception,), {"__module__": type(error).__module__})
    return short, short(clipped(error)), error.__traceback__


def _can_be_shown(error: BaseException) -> bool:
    try:
        traceback.format_exception(error)
    except BaseException:
        return False
    return True


def _text(value: object) -> str:
    try:
        return str.__str__(str(value))  # no subclass of str with methods of its own
    except BaseException:
        return f"({type(value).__name__}, whose text cannot be made)"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it came from, as a traceback shows them."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
