"""Times from numbers that anybody may have written: as datetimes, which are always valid."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

#: The last moment that a datetime can be, with room for any time zone. It is shown as BEYOND_WORDS, and so is
#: what is later.
BEYOND = datetime(9999, 12, 30, tzinfo=UTC)
BEYOND_WORDS = "time out of range"

_LAST_MS = BEYOND.timestamp() * 1000
#: All whole numbers up to this one are exact as doubles, which scores of Redis and numbers of Lua are.
MAX_EXACT = 2**53
#: Delays and times beyond this are a mistake in the unit, not a plan: 100 years. Seconds.
MAX_DELAY = 100 * 366 * 86400.0


def moment(milliseconds: float) -> datetime:
    """Return milliseconds since 1970 as a datetime; BEYOND for a time that the calendar does not have."""
    if math.isnan(milliseconds):
        return BEYOND
    return datetime.fromtimestamp(max(0, min(milliseconds, _LAST_MS)) / 1000, UTC)


def utc_words(moment: datetime) -> str:
    """Return a datetime as text, to the second, in UTC; it does not say that it is."""
    return BEYOND_WORDS if moment >= BEYOND else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def whole(raw: bytes) -> int:
    """Return a score of a zset as whole milliseconds, cut to what is exact. Raises ValueError."""
    return int(max(-MAX_EXACT, min(float(raw), MAX_EXACT)))


def delay_seconds(delay: object) -> float | None:
    """Return a delay, given as seconds or a timedelta, in seconds.

    None for what is no number, not finite, or more than MAX_DELAY.
    """
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    if not -math.inf < seconds <= MAX_DELAY:  # NaN is in no range
        return None
    return float(max(seconds, -MAX_DELAY))
