"""Watches Celery's main loop from a thread: the loop cannot see itself that it stands still.

Slices are started in that loop, and their ends are heard there. Where something in it waits for what does not
come (a broker, a signal handler that stops the pool within itself), the worker beats on, and nobody works on
its lanes. So this thread says where the loop stands, has the lanes given to others, and ends the process if
the loop does not come back.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from bus.safety.complaints import Complaints

logger = logging.getLogger("jitney.workers")

#: A loop that made no round for so long stands still: its lanes go to others. Seconds.
STANDING_SECONDS = 8.0
#: A loop that made no round for so long does not come back: the process ends. Seconds.
HOPELESS_SECONDS = 90.0
#: A worker that stops, and has waited for the broker for so long, does not come to its end: the process ends.
#: Seconds.
HOPELESS_STOPPING_SECONDS = 30.0
#: A worker that was told to stop at once gets no longer than this, whatever it waits for and whoever is at
#: work. Seconds.
HOPELESS_COLD_SECONDS = 10.0
#: How often this thread looks. Seconds.
LOOK_SECONDS = 1.0

#: Parts of file names in the main loop's stack that show that it waits for the broker.
_BROKER = ("/kombu/", "/redis/", "/amqp/", "/vine/", "/boto3/", "/botocore/")


class LoopWatch(threading.Thread):
    """The thread that watches the main loop of one worker. The loop calls `note_round`."""

    def __init__(
        self,
        on_change: Callable[[], None],
        is_busy: Callable[[], bool],
        *,
        end: Callable[[int], None] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_change`: called when the loop stands still, and when it goes on.

        `is_busy`: returns whether a handler runs, which would be killed.

        `end`: ends the process at once, with this exit code.
        """
        super().__init__(name="jitney-main-loop-watch", daemon=True)
        self._on_change = on_change
        self._is_busy = is_busy
        self._end = end
        self._clock = clock
        self._done = threading.Event()
        self._complaints = Complaints(logger, clock=clock)
        self._last_round = self._last_look = clock()
        self._stop_kind: str | None = None
        """As Celery says, "Warm" or "Cold"; None while the worker does not stop."""
        self._hung_since: float | None = None
        self.standing = False
        """True while the loop stands still, unless the worker stops: then the loop makes no more rounds."""

    def note_round(self) -> None:
        """Note that the loop goes round. Called by the loop, many times a second."""
        self._last_round = self._clock()

    def note_stop(self, how: str) -> None:
        """Note that the worker stops, so the loop makes no more rounds.

        `how`: as Celery says; "Cold" is at once.

        A second call changes nothing, except that a warm stop may become a cold one.
        """
        if self._stop_kind not in ("Cold", how):
            self._stop_kind, self._hung_since = how, None

    def note_pool_end(self) -> None:
        """Note that no handler is at work any more, whatever shared memory says of killed processes."""
        self._is_busy = lambda: False

    def stop(self) -> None:
        self._done.set()

    def run(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception as error:
                # Whatever it is: a loop that stands still must still be seen.
                self._complaints.say(
                    type(error).__name__, "Celery's main loop could not be looked at; that is tried again.",
                    level=logging.ERROR, exc_info=error,
                )  # fmt: skip

    def look(self) -> None:
        """Look once whether the loop goes round, and act on it."""
        now = self._clock()
        if now - self._last_look > STANDING_SECONDS / 2:
            self._last_round = max(self._last_round, now)  # this whole process was frozen
            self._hung_since = None
        self._last_look = now
        if self._stop_kind is not None:
            self._look_at_the_end(now)
            return
        stood_for = now - self._last_round
        if not self.standing and stood_for > STANDING_SECONDS:
            self.standing = True
            logger.error(
                "Celery's main loop has stood still for %.0f s, so this worker starts no slices and gives "
                "its lanes to others. It stands here:\n%s",
                stood_for,
                _text(_stack()),
            )
            self._on_change()
        elif self.standing and stood_for < STANDING_SECONDS:
            self.standing = False
            logger.warning("Celery's main loop goes on; this worker takes lanes as before.")
            self._on_change()
        if stood_for > HOPELESS_SECONDS and not self._is_busy():
            self._give_up(f"Celery's main loop has stood still for {stood_for:.0f} s")

    def _look_at_the_end(self, now: float) -> None:
        """Look whether the stop of the worker hangs.

        A warm stop may wait for handlers and tasks as long as they take, but not for the broker.
        """
        stack = _stack()
        waits = any(part in frame.filename for frame in stack for part in _BROKER)
        cold = self._stop_kind == "Cold"
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
