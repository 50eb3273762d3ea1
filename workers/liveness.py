"""Finds out which workers are dead: those whose beat counter stands still, by the observer's own clock.

There are no expiry times in Redis, so a frozen server or a full memory kills nobody. And the observer
counts only time in which it did read the table: an error, a new connection, or a pause of its own
(SIGSTOP, a suspended machine) starts the observation anew, for all workers.
"""

from __future__ import annotations

from collections.abc import Mapping

#: How often each worker raises its counter and reads the others'. Seconds. A death is noticed within
#: DEAD_SECONDS and one beat: with 5 s that would be 20 s and no more room.
BEAT_SECONDS = 3.0

#: How long a counter must stand still, under observation, until its worker counts as dead. Seconds.
DEAD_SECONDS = 15.0

#: A worker whose counter stood still for so long does not lead: two beats and a margin. Seconds.
#: A mistake costs nothing here, since two leaders at once do no harm; a wait makes delayed messages late.
LEAD_SECONDS = 2 * BEAT_SECONDS + 1.5

#: Two readings further apart than this are no observation: what happened in between was not seen. Seconds.
#: One reading may be late by the client's timeout; with 15 s a pause alone could use up DEAD_SECONDS.
MAX_GAP = 10.0

#: A reading is due so long after the end of DEAD_SECONDS or LEAD_SECONDS: just before, it would tell nothing.
#: Seconds.
_MARGIN = 0.01


class Liveness:
    """One observer's view of the table of workers. Not thread-safe; times are `time.monotonic()`."""

    def __init__(self, me: str) -> None:
        """`me`: the observer's own incarnation, which is never dead."""
        self._me = me
        self._began: float | None = None
        self._last = 0.0
        self._counters: dict[str, int | None] = {}
        """The counters that were read last; None for a worker that has left the table."""
        self._since: dict[str, float] = {}
        """The time at which the present counter of each worker was first read."""

    def observe(self, table: Mapping[str, int], now: float) -> None:
        """Take in a reading that had no error: incarnation → beat counter. `now`: when the reply came."""
        if self._began is None or not 0 <= now - self._last <= MAX_GAP:
            self._start(now)
        for incarnation in self._counters.keys() | table.keys():
            counter = table.get(incarnation)
            if counter is None:
                self._counters[incarnation] = None  # no beat: it has stood still since the last one
            elif incarnation not in self._since or self._counters[incarnation] != counter:
                self._counters[incarnation] = counter
                self._since[incarnation] = now
        self._last = now
        self._forget_the_gone()

    def begin_anew(self, now: float) -> None:
        """Forget what was seen: a reading failed, or the connection is a new one."""
        self._last = now
        self._began = None
        self._counters.clear()
        self._since.clear()

    def dead(self) -> set[str]:
        """Return the workers in the table that were dead at the last reading."""
        present = [name for name, counter in self._counters.items() if counter is not None]
        return {name for name in present if self.is_dead(name)}

    def is_dead(self, incarnation: str) -> bool:
        """Return whether a worker was dead at the last reading, also one that is not in the table.

        A worker that is not there counts as one whose counter stands still. So each has time to write its
        record again after the table was lost.
        """
        if self._began is None or incarnation == self._me:
            return False
        return self._last - self._since.get(incarnation, self._began) >= DEAD_SECONDS

    def moving(self) -> set[str]:
        """Return the workers in the table that may lead: this one, and all that do not stand still.

        A worker stands still here if its counter has not moved for LEAD_SECONDS of observation.
        """
        present = [name for name, counter in self._counters.items() if counter is not None]
        return {name for name in present if name == self._me or self._last - self._since[name] < LEAD_SECONDS}

    def next_look(self, now: float) -> float:
        """Return the seconds until the next reading: a beat, or until a worker may be found dead or still."""
        limits = (LEAD_SECONDS, DEAD_SECONDS)
        ends = [since + limit + _MARGIN - now for since in self._since.values() for limit in limits]
        return min([BEAT_SECONDS, *(seconds for seconds in ends if seconds > 0)])

    def _start(self, now: float) -> None:
        self._began = now
        self._counters.clear()
        self._since.clear()

    def _forget_the_gone(self) -> None:
        # Once it has been missing for long enough, is_dead says the same without an entry.
        for incarnation in [name for name, counter in self._counters.items() if counter is None]:
            if self._last - self._since[incarnation] >= DEAD_SECONDS:
                del self._counters[incarnation], self._since[incarnation]
