"""What one attempt at a message will meet: the same in every run with the same seed, whoever handles it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

FAILURES = 0.05
SLOW = 0.03
VERY_SLOW = 0.003


@dataclass(frozen=True, slots=True)
class Fate:
    """What a handler is to do."""

    seconds: float
    """How long it works."""
    fails: bool


def fate(seed: int, message: str, attempt: int) -> Fate:
    """The fate of this attempt (from 1) at the message with this unique name."""
    digest = hashlib.sha256(f"{seed}:{message}:{attempt}".encode()).digest()
    first, second, third = (int.from_bytes(digest[at : at + 4]) / 2**32 for at in (0, 4, 8))
    return Fate(seconds=_seconds(second, third), fails=first < FAILURES)


def _seconds(chance: float, share: float) -> float:
    if chance < VERY_SLOW:
        return 1.0 + share
    return 0.05 + 0.35 * share if chance < SLOW else 0.0
