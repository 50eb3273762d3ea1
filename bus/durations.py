"""Durations as text: read as people write them, written as people read them."""

from __future__ import annotations

import re
from datetime import timedelta

from bus.errors import ConfigurationError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SHOWN = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def parse_duration(text: str | timedelta | float | None) -> timedelta | None:
    """Return the duration in `"7d"`, `"12h"`, `"90s"`, a timedelta, or seconds; None (for ever) stays None.

    Raises ConfigurationError, also for zero and less.
    """
    if text is None or isinstance(text, timedelta):
        duration = text
    else:
        try:
            duration = timedelta(seconds=_seconds(text))
        except (ValueError, OverflowError):
            raise ConfigurationError(
                f"{text!r} is not a duration: write a number and a unit, such as '90s', '12h' or '7d'."
            ) from None
    if duration is not None and duration <= timedelta(0):
        raise ConfigurationError(f"A duration must be longer than zero, not {text!r}.")
    return duration


def _seconds(text: object) -> float:
    if isinstance(text, int | float) and not isinstance(text, bool):
        return text
    match = _DURATION.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(text)
    return float(match[1]) * _UNIT_SECONDS[match[2]]


def short(duration: timedelta) -> str:
    """Return one number and a unit that are exactly the duration, such as 7d, 36h or 90s; for forms."""
    seconds = duration.total_seconds()
    for unit, size in _SHOWN:
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms" if (seconds * 1000).is_integer() else f"{seconds}s"


def words(duration: timedelta) -> str:
    """Return the two greatest units, such as 3d 4h, 3m 12s or 8s, for people; below a second: 0.4s."""
    seconds = duration.total_seconds()
    if seconds < 1:
        return "0s" if seconds < 0.05 else f"{seconds:.1f}s"
    parts: list[str] = []
    left = int(seconds)
    for unit, size in _SHOWN:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    kept = parts[:2]
    return " ".join(kept[:1] if len(kept) == 2 and kept[1].startswith("0") else kept)
