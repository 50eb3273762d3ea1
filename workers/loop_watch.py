"""A thread that sees what Celery's main loop cannot see itself: that it stands still.

Slices are started in that loop, and their ends are heard there. Where something in it waits for what does not
come (a broker, a signal handler that stops the pool within itself), the worker beats on, and nobody works on
its lanes. So this thread says where the loop stands, has the lanes given to others, and ends the process if
it does not come back.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

logger = logging.getLogger("jitney.workers")

#: A loop that did not turn for so long stands still: its lanes go to others. Seconds.
STANDING_SECONDS = 8.0
#: One that has not turned for so long does not come back: the process ends. Seconds.
HOPELESS_SECONDS = 90.0
#: The same of a worker that stops, where that waits for the broker. Seconds.
HOPELESS_STOPPING_SECONDS = 30.0
#: The same of one that was told to stop at once, whatever it waits for, and whoever is at work. Seconds.
HOPELESS_COLD_SECONDS = 10.0
#: How often this thread looks. Seconds.
LOOK_SECONDS = 1.0

#: What waits for the broker, by its place in the main loop's stack.
_BROKER = ("/kombu/", "/redis/", "/amqp/", "/vine/", "/boto3/", "/botocore/")


class LoopWatch(threading.Thread):
    """Watches the main loop of one worker; `turned` is called by it."""

    def __init__(
        self,
        on_change: Callable[[], None],
        is_busy: Callable[[], bool],
        *,
        end: Callable[[int], None] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_change`: the loop stands still, or turns again. `is_busy`: a handler runs, which would be
        killed.

        `end`: ends the process at once, with this exit code.
        """
        super().__init__(name="jitney-main-loop-watch", daemon=True)
        self._on_change = on_change
        self._is_busy = is_busy
        self._end = end
        self._clock = clock
        self._done = threading.Event()
        self._turned = self._looked = clock()
        self._stopping: str | None = None
        self._hung_since: float | None = None
        self.standing = False
        """True while the loop stands still. (Not while the worker stops, when it need not turn any more.)"""

    def turned(self) -> None:
        """Note that the loop turns. Called by it, many times a second."""
        self._turned = self._clock()

    def stopping(self, how: str) -> None:
        """The worker stops: the loop does not turn any more. `how`: as Celery says, "Cold" is at once.

        Said once more it changes nothing, but that a worker which stops is to end at once now.
        """
        if self._stopping not in ("Cold", how):
            self._stopping, self._hung_since = how, None

    def pool_ended(self) -> None:
        """No handler is at work any more, whatever shared memory says of processes that were killed."""
        self._is_busy = lambda: False

    def stop(self) -> None:
        self._done.set()

    def run(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception:
                # Whatever it is: a loop that stands still must still be seen.
                logger.exception("Celery's main loop could not be looked at; that is tried again.")

    def look(self) -> None:
        now = self._clock()
        if now - self._looked > STANDING_SECONDS / 2:
            self._turned = max(self._turned, now)  # this whole process was frozen
            self._hung_since = None
        self._looked = now
        if self._stopping is not None:
            self._look_at_the_end(now)
            return
        stood_for = now - self._turned
        if not self.standing and stood_for > STANDING_SECONDS:
            self.standing = True
            logger.error(
                "Celery's main loop has stood still for %.0f s, so this worker starts no slices and "
                "gives its "
                "lanes to others. It stands here:\n%s",
                stood_for,
                _text(_stack()),
            )
            self._on_change()
        elif self.standing and stood_for < STANDING_SECONDS:
            self.standing = False
            logger.warning("Celery's main loop turns again; this worker takes lanes as before.")
            self._on_change()
        if stood_for > HOPELESS_SECONDS and not self._is_busy():
            self._give_up(f"Celery's main loop has stood still for {stood_for:.0f} s")

    def _look_at_the_end(self, now: float) -> None:
        """Look at a worker that stops. A warm stop may wait for handlers and tasks as long as they take, but
        not for the broker.
        """
        stack = _stack()
        waits = any(part in each.filename for each in stack for part in _BROKER)
        cold = self._stopping == "Cold"
        if not (waits or cold):
            self._hung_since = None
            return
        self._hung_since = now if self._hung_since is None else self._hung_since
        hung_for = now - self._hung_since
        limit = HOPELESS_COLD_SECONDS if cold else HOPELESS_STOPPING_SECONDS
        if hung_for > limit and (cold or not self._is_busy()):
            self._give_up(f"The end of this worker has hung for {hung_for:.0f} s")

    def _give_up(self, why: str) -> None:
        logger.critical("%s; the process exits now. It stands here:\n%s", why, _text(_stack()))
        for handler in logging.getLogger().handlers:
            handler.flush()
        self._end(1)


def _stack() -> Sequence[traceback.FrameSummary]:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return traceback.extract_stack(frame) if frame is not None else []


def _text(stack: Sequence[traceback.FrameSummary]) -> str:
    return "".join(traceback.format_list(list(stack)[-25:]))
