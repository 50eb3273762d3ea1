"""Durations in words."""

from __future__ import annotations

from datetime import timedelta

_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def short(duration: timedelta) -> str:
    """One number and a unit that give it back exactly, such as 7d, 36h or 90s; for forms."""
    seconds = duration.total_seconds()
    for unit, size in _UNITS:
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms" if (seconds * 1000).is_integer() else f"{seconds}s"


def words(duration: timedelta) -> str:
    """The two greatest units, such as 3d 4h, 3m 12s or 8s; for people. Below a second: 0.4s."""
    seconds = duration.total_seconds()
    if seconds < 1:
        return "0s" if seconds < 0.05 else f"{seconds:.1f}s"
    parts: list[str] = []
    left = int(seconds)
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    kept = parts[:2]
    return " ".join(kept[:1] if len(kept) == 2 and kept[1].startswith("0") else kept)
