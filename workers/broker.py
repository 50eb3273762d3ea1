"""Celery's consumer, made to go on with the bus while Celery's own broker is away.

As Celery has it, the main loop stands still until the broker is back, and with it all that needs the
loop: results of the pool, new slices. The bus does not need the broker, so the loop is kept running.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery.worker import loops, state
from celery.worker.consumer import Consumer
from kombu.exceptions import OperationalError

logger = logging.getLogger("jitney.workers")

#: How often the broker is tried while it is away. Seconds.
PROBE_SECONDS = 1.0


class PatientConsumer(Consumer):  # type: ignore[misc]  # Celery has no types
    """Waits for the broker with the main loop running."""

    def ensure_connected(self, conn: Any) -> Any:
        """Called at each (re)connection. The first one of a worker waits as Celery does.

        So do further connections beside the main one, whose place in the loop must not be taken.
        """
        if not self.first_connection_attempt and self.hub is not None and self.connection is None:
            self._run_until_reachable(conn)
        return super().ensure_connected(conn)

    def on_close(self) -> None:
        """Celery drops the jobs that no process has accepted: not those that a process has read already.

        At the end of the worker such a process would wait 30 s for the receipt of its result.
        """
        pool = getattr(self.pool, "_pool", None)  # the prefork pool of billiard, if it is that
        for job in list(getattr(pool, "_cache", {}).values()):
            if job._write_to is not None:
                job._accepted = True
        super().on_close()

    def _run_until_reachable(self, conn: Any) -> None:
        probe = _Probe(conn)
        if probe.reaches():
            return
        logger.warning("The Celery broker is away; consuming from the bus goes on, ordinary tasks wait.")
        before = loops._timer_entries(self.hub.timer)
        # Celery has reset the loop: the pool must be entered in it again, as asynloop does at its start.
        self.pool.register_with_event_loop(self.hub)
        probe.start()
        loop = self.hub.create_loop()
        try:
            while probe.is_alive():
                state.maybe_shutdown()
                try:
                    next(loop)
                except StopIteration:
                    loop = self.hub.create_loop()
        finally:
            probe.stop()
            self.hub.reset()
            loops._cancel_timer_entries(self.hub.timer, loops._timer_entries(self.hub.timer) - before)
        logger.warning("The Celery broker is back.")


class _Probe(threading.Thread):
    """Tries the broker with connections of its own; ends when it is reached."""

    def __init__(self, conn: Any) -> None:
        super().__init__(name="jitney-broker-probe", daemon=True)
        self._conn = conn
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.wait(PROBE_SECONDS) and not self.reaches():
            pass

    def reaches(self) -> bool:
        errors = (OperationalError, *self._conn.connection_errors, *self._conn.channel_errors)
        with self._conn.clone() as probe:
            try:
                probe.connect()
                probe.default_channel  # noqa: B018  transports that connect late do so here
            except errors:
                return False
        return True
