"""What a check found."""

from __future__ import annotations

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
