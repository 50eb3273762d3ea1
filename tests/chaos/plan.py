"""Which faults come when: drawn from the seed alone, before anything runs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

#: Faults of one worker, and of the server that all share.
WORKER_KINDS = ("child", "kill", "stop", "quit", "freeze")
SERVER_KINDS = ("redis-kill", "redis-restart", "connections")
KINDS = (*WORKER_KINDS, *SERVER_KINDS)

#: A frozen worker is thawed after it was surely taken over: 15 s without a beat, seen up to 5 s later.
FREEZE_SECONDS = (21.0, 24.0)
#: How long the server is away.
OUTAGE_SECONDS = (0.1, 2.0)


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault to come."""

    at: float
    """Seconds after the run began."""
    kind: str
    pick: float
    """Which of the possible victims, from 0 to below 1."""
    seconds: float
    """How long it lasts, where it lasts."""


def draw(seed: int, seconds: float, kinds: Sequence[str], interval: float) -> list[Planned]:
    """Faults for a run of so many seconds, one about every `interval`.

    Every kind comes once before any comes again, as far as that is possible: while a worker is frozen the
    server is left alone (an outage makes everybody observe anew, so nobody would take the frozen one's
    lanes over), and no second one is frozen. The first fault is a freeze, so that a short run has one.
    """
    generator = random.Random(f"{seed}:plan")
    planned: list[Planned] = []
    bag: list[str] = []
    now, thaw = interval, 0.0
    while now < seconds:
        lasts = {kind: generator.uniform(*_range(kind)) for kind in KINDS}
        fits = now >= thaw and now + lasts["freeze"] <= seconds
        allowed = [kind for kind in kinds if _allowed(kind, fits=fits, frozen=now < thaw)]
        if not any(kind in allowed for kind in bag):
            bag += generator.sample(list(kinds), len(kinds))
        kind = next((kind for kind in bag if kind in allowed), None)
        if not planned and "freeze" in allowed:
            kind = "freeze"
        if kind is not None:
            bag.remove(kind)
            planned.append(Planned(now, kind, generator.random(), lasts[kind]))
            thaw = now + lasts[kind] if kind == "freeze" else thaw
        now += interval * generator.uniform(0.5, 1.5)
    return planned


def _allowed(kind: str, *, fits: bool, frozen: bool) -> bool:
    if kind == "freeze":
        return fits
    return kind in WORKER_KINDS or not frozen


def _range(kind: str) -> tuple[float, float]:
    if kind == "freeze":
        return FREEZE_SECONDS
    return OUTAGE_SECONDS if kind in ("redis-kill", "redis-restart") else (0.0, 0.0)
