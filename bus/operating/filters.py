"""Reads filters of dead letters as people write them, on the command line and in addresses of pages.

Every function raises ConfigurationError, which says what is wrong with the text and how to write it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from bus.durations import parse_duration
from bus.errors import ConfigurationError
from bus.safety.unreadable import shown
from bus.values import MAX_PARTITIONS

_PARTITION = re.compile(r"\d{1,9}", re.ASCII)
#: Characters of a duration or a time at most.
_LONGEST = 100


def is_said(ids: object, filters: object, everything: object) -> bool:
    """Return whether exactly one says which letters are meant: ids, filters, or "all".

    Nothing never means all.
    """
    return bool(ids) + bool(filters) + bool(everything) == 1


def partition(text: str) -> int:
    """Read the number of a partition, whether the topic has it or not."""
    written = text.strip()
    if not _PARTITION.fullmatch(written) or int(written) >= MAX_PARTITIONS:
        raise ConfigurationError(
            f"{shown(text)} is no partition: write a whole number from 0 to {MAX_PARTITIONS - 1}."
        )
    return int(written)


def reason(text: str) -> str:
    """Read the text that must stand in a reason. An empty text would stand in all, so it is refused."""
    if not text.strip():
        raise ConfigurationError("The text to look for in reasons is empty: it would be found in all.")
    return text


def since(text: str) -> datetime:
    """Read an ISO time, in UTC if it names no zone; or how long ago, by the clock of this machine."""
    try:
        duration = parse_duration(text) if len(text) <= _LONGEST else None
    except ConfigurationError:
        duration = None
    if duration is None:
        return _iso(text, "neither a duration, such as 90s or 7d, nor a time")
    try:
        return datetime.now(UTC) - duration
    except OverflowError:
        raise ConfigurationError(f"{text!r} ago the calendar had not begun.") from None


def moment(text: str) -> datetime:
    """Read an ISO time, in UTC if it names no zone."""
    return _iso(text, "no time")


def _iso(text: str, otherwise: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigurationError(f"{shown(text)} is {otherwise}, such as 2030-01-31T12:00+01:00.") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
