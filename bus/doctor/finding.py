"""What a check found, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    level: Level
    check: str
    """The name of the check, such as "eviction"."""
    text: str
    """What is so."""
    hint: str = ""
    """What to do about it, where there is something to do."""


#: Names in one text.
_NAMED = 5


def some(names: Sequence[str], separator: str = ", ") -> str:
    """Return the first names of a list as text, and how many more there are."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return separator.join(names[:_NAMED]) + more
