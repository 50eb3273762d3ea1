"""Which faults come when: drawn from the seed alone, before anything runs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

#: Faults that freeze a worker for longer than it counts as alive: anywhere, or inside a database transaction.
FREEZES = ("freeze", "trap")
#: Faults of one worker, and of the server that all share.
WORKER_KINDS = ("child", "kill", "stop", "quit", *FREEZES)
SERVER_KINDS = ("redis-kill", "redis-restart", "connections", "failover")
#: What others do: a new release of the code, a broker that answers nobody, somebody who writes into our keys.
OTHER_KINDS = ("deploy", "broker", "junk")
KINDS = (*WORKER_KINDS, *SERVER_KINDS, *OTHER_KINDS)

#: A frozen worker is thawed after it was surely taken over: 15 s without a beat, seen up to 5 s later.
FREEZE_SECONDS = (21.0, 24.0)
#: How long the server is away.
OUTAGE_SECONDS = (0.1, 2.0)
#: How old the data are with which the server comes back.
LAG_SECONDS = (0.2, 3.0)
#: How long the broker accepts and does not answer.
BROKER_SECONDS = (6.0, 16.0)
#: After so long a stranger removes what he wrote.
JUNK_SECONDS = (3.0, 10.0)

_RANGES = {
    "freeze": FREEZE_SECONDS,
    "trap": FREEZE_SECONDS,
    "redis-kill": OUTAGE_SECONDS,
    "redis-restart": OUTAGE_SECONDS,
    "failover": LAG_SECONDS,
    "broker": BROKER_SECONDS,
    "junk": JUNK_SECONDS,
}


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
        lasts = {kind: generator.uniform(*_RANGES.get(kind, (0.0, 0.0))) for kind in KINDS}
        allowed = [
            kind
            for kind in kinds
            if _allowed(kind, fits=now >= thaw and now + lasts[kind] <= seconds, frozen=now < thaw)
        ]
        if not any(kind in allowed for kind in bag):
            bag += generator.sample(list(kinds), len(kinds))
        kind = next((kind for kind in bag if kind in allowed), None)
        if not planned and "freeze" in allowed:
            kind = "freeze"
        if kind is not None:
            bag.remove(kind)
            planned.append(Planned(now, kind, generator.random(), lasts[kind]))
            thaw = now + lasts[kind] if kind in FREEZES else thaw
        now += interval * generator.uniform(0.5, 1.5)
    return planned


def _allowed(kind: str, *, fits: bool, frozen: bool) -> bool:
    if kind in FREEZES:
        return fits
    return kind not in SERVER_KINDS or not frozen
