"""Finds out which workers are silent, by comparing the looks of this web process, by its own clock.

A worker raises its beat counter every few seconds; one look cannot tell life from death.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from bus.observe import WorkerSnapshot

#: Seconds without a beat after which a worker counts as silent; workers judge each other by the same time.
SILENCE = 15.0


class Pulse:
    """The beats seen so far. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[int, float]] = {}

    def look(self, workers: Iterable[WorkerSnapshot]) -> dict[str, float]:
        """Note the beats of all workers; return the silent ones: incarnation → seconds without a beat."""
        now = self._clock()
        with self._lock:
            before, self._seen = self._seen, {}
            for worker in workers:
                beat, since = before.get(worker.incarnation, (worker.beat, now))
                self._seen[worker.incarnation] = (worker.beat, since if beat == worker.beat else now)
            quiet = {name: now - since for name, (_, since) in self._seen.items()}
        return {name: seconds for name, seconds in quiet.items() if seconds >= SILENCE}

    def forget(self) -> None:
        """Forget all beats: Redis did not answer, nobody could beat, so nothing follows from silence."""
        with self._lock:
            self._seen.clear()


#: Of this process.
pulse = Pulse()
