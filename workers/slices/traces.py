"""Makes what is kept of an exception: never more than a little, and never an error of its own."""

from __future__ import annotations

import traceback

from bus.format.state import MAX_ERROR
from bus.safety.tracebacks import clipped as _clipped
from bus.safety.tracebacks import copied, formatted, is_small

#: Bytes of a text that are kept: a character has up to four.
MAX_BYTES = MAX_ERROR


def clipped(text: object) -> str:
    """Return the beginning and the end of a text, as UTF-8 can hold it, in MAX_BYTES bytes at most."""
    return _clipped(text, MAX_BYTES)


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
        text = formatted(error if is_small(error) else copied(error))
    except BaseException:  # whatever an exception of the project's is made of
        text = None
    if text is not None:
        return clipped(text)
    frames = "".join(traceback.format_tb(error.__traceback__))
    return clipped(f"Traceback (most recent call last):\n{frames}{reason(error)}\n")
