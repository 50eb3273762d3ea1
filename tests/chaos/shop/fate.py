"""What one attempt at a message will meet: the same in every run with the same seed, whoever handles it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Ending = Literal["", "fails", "exits", "interrupts", "dies"]

FAILURES = 0.05
#: `SystemExit` and `KeyboardInterrupt` out of a handler, and the end of its process.
EXITS = 0.002
INTERRUPTS = 0.002
DEATHS = 0.001
SLOW = 0.03
VERY_SLOW = 0.003


@dataclass(frozen=True, slots=True)
class Fate:
    """What a handler is to do."""

    seconds: float
    """How long it works."""
    ending: Ending
    """How it ends; "" for well."""

    @property
    def is_violent(self) -> bool:
        """It ends by something that is no `Exception`."""
        return self.ending in ("exits", "interrupts", "dies")


def fate(seed: int, group: str, message: str, attempt: int) -> Fate:
    """The fate of this attempt (from 1) of a group at the message with this unique name."""
    digest = hashlib.sha256(f"{seed}:{group}:{message}:{attempt}".encode()).digest()
    first, second, third = (int.from_bytes(digest[at : at + 4]) / 2**32 for at in (0, 4, 8))
    return Fate(seconds=_seconds(second, third), ending=_ending(first))


def _ending(chance: float) -> Ending:
    endings: tuple[tuple[Ending, float], ...] = (
        ("fails", FAILURES), ("exits", EXITS), ("interrupts", INTERRUPTS), ("dies", DEATHS),
    )  # fmt: skip
    for ending, share in endings:
        if chance < share:
            return ending
        chance -= share
    return ""


def _seconds(chance: float, share: float) -> float:
    if chance < VERY_SLOW:
        return 1.0 + share
    return 0.05 + 0.35 * share if chance < SLOW else 0.0
