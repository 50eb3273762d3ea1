"""Keeps Celery's main loop running while Celery's own broker is away.

As Celery has it, the loop stands still until the broker is back, and with it all that needs the loop: results
of the pool, new slices. The bus does not need the broker, so the loop is kept running.

A broker that takes connections and answers nothing (stopped, behind a firewall that drops) would hold the
loop in a read that never ends. So reads have a timeout, after which such a broker counts as away. And a
thread sends the events (above all the heartbeat, which every worker sends).

A Redis that answers with errors (its memory is full, it has become a replica, it misses its own replicas) is
of no more use than one that is away, and as Celery has it such an error ends the worker. So it counts as away
too, until it takes the commands with which a worker begins.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from billiard.exceptions import WorkerLostError
from celery.worker import loops, state
from celery.worker.consumer import Consumer

from workers.broker_probe import AWAY, PROBE_SECONDS, BrokerProbe, is_redis, refusals

logger = logging.getLogger("jitney.workers")

#: How long the main loop waits for the broker's answer, unless the project says so itself
#: (broker_transport_options). Seconds.
ANSWER_SECONDS = 5.0
#: Events that wait for the broker at most; then the oldest are lost, as they are while it is away.
MAX_EVENTS = 1_000


class PatientConsumer(Consumer):  # type: ignore[misc]  # Celery has no types
    """Celery's consumer, which waits for the broker with the main loop running."""

    begin: Callable[[], None] | None = None
    """Starts consuming from the bus; set by the step that does it."""
    end_at_once: Callable[[], None] | None = None
    """Hears that the worker is to end at once; set by the same step."""
    _events: Any = None
    _refused = False
    """The connection before this one ended by an error that the broker replied."""
    _refusals: tuple[type[BaseException], ...] = ()
    restart_count: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refusals = refusals(self.conninfo)
        self.connection_errors += self._refusals

    @property
    def event_dispatcher(self) -> Any:
        return self._events

    @event_dispatcher.setter
    def event_dispatcher(self, dispatcher: Any) -> None:
        # Others share their connection with the main loop, for heartbeats of their protocol.
        detached = dispatcher is not None and self.hub is not None and is_redis(dispatcher.connection)
        self._events = _Events(dispatcher) if detached else dispatcher

    def ensure_connected(self, conn: Any) -> Any:
        """Connect to the broker, with the main loop running meanwhile. Celery calls this for each connection.

        Connections beside the main one wait as Celery does, since its place in the loop must not be taken. So
        does the first one, if the project wants it to be tried only once.
        """
        if is_redis(conn):
            options = conn.transport_options
            options.setdefault("socket_timeout", ANSWER_SECONDS)
            options.setdefault("socket_connect_timeout", ANSWER_SECONDS)
            # The main loop asks the connection which errors are to end its round.
            conn.connection_errors = (*conn.connection_errors, *self._refusals)
        _track_living(getattr(self.pool, "_pool", None))
        if self.hub is not None and self.connection is None and self._retries():
            self._run_until_reachable(conn)
        return super().ensure_connected(conn)

    def _retries(self) -> bool:
        """Return whether the broker is tried again and again, by the settings of the project."""
        retry = self.app.conf.broker_connection_retry
        if self.first_connection_attempt and self.app.conf.broker_connection_retry_on_startup is not None:
            retry = self.app.conf.broker_connection_retry_on_startup
        return bool(retry) or not self.first_connection_attempt

    def on_connection_error_before_connected(self, exc: BaseException) -> None:
        self._refused = isinstance(exc, self._refusals)
        super().on_connection_error_before_connected(exc)

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        self._refused = isinstance(exc, self._refusals)
        # (A channel of AMQP may fail on a connection that is well.)
        if is_redis(self.connection) or isinstance(exc, self.connection_errors):
            _sever(self.connection)
            # Celery keeps it until the broker is back, or the worker ends, and then takes leave over it.
            _sever(self.event_dispatcher and self.event_dispatcher.connection)
        super().on_connection_error_after_connected(exc)

    def cancel_active_requests(self) -> None:
        """Say first that the worker ends at once: a cold shutdown calls this before all else.

        Then Celery's signal handler stops the pool within itself, which may never end, and only after that
        Celery says that it shuts down.
        """
        if self.end_at_once is not None:
            self.end_at_once()
        super().cancel_active_requests()

    def on_close(self) -> None:
        """Drop the jobs that no process has accepted, as Celery does, but not those that a process has read.

        At the end of the worker such a process would wait 30 s for the receipt of its result.
        """
        pool = getattr(self.pool, "_pool", None)  # the prefork pool of billiard, if it is that
        for job in list(getattr(pool, "_cache", {}).values()):
            if job._write_to is not None:
                job._accepted = True
        super().on_close()

    def _queues(self) -> list[Any]:
        """Return the queues that this worker takes tasks from, but for those that go with a connection."""
        return [queue for queue in self.app.amqp.queues.consume_from.values() if not queue.auto_delete]

    def _run_until_reachable(self, conn: Any) -> None:
        # What was refused last may be something that the probe does not try. Then too the loop runs between
        # two attempts.
        pause = PROBE_SECONDS if self._refused else 0.0
        probe, began, said = BrokerProbe(conn, self._queues(), pause=pause), time.monotonic(), ""
        probe.start()
        if self.first_connection_attempt:
            probe.join(PROBE_SECONDS)
            if not probe.is_alive():
                return
        if not self.strategies:
            self.update_strategies()
        if not self.restart_count and not self.pool.did_start_ok():  # as asynloop asks, before its first loop
            raise WorkerLostError("Could not start worker processes")
        if self.begin is not None:
            self.begin()
        before = loops._timer_entries(self.hub.timer)
        # The pool must be entered in the loop (Celery resets it with each connection), as asynloop does.
        self.pool.register_with_event_loop(self.hub)
        loop = self.hub.create_loop()
        try:
            while probe.is_alive():
                state.maybe_shutdown()
                wrong = probe.wrong or said or AWAY
                if wrong != said and time.monotonic() - began > PROBE_SECONDS:
                    said = wrong
                    logger.warning("%s; consuming from the bus goes on, ordinary tasks wait.", wrong)
                try:
                    next(loop)
                except StopIteration:
                    loop = self.hub.create_loop()
        finally:
            probe.stop()
            self.hub.reset()
            loops._cancel_timer_entries(self.hub.timer, loops._timer_entries(self.hub.timer) - before)
        # The first loop was this one. A process that dies between it and Celery's is replaced like any other;
        # as the first thing of a worker it would be one that cannot start, and end the worker.
        self.restart_count = max(1, self.restart_count)
        logger.warning("The Celery broker is back.")


def _track_living(pool: Any) -> None:
    """Make the prefork pool enter only those processes in the loop whose end it has not seen.

    Celery takes a process out of the loop when its pipe ends, and out of the pool when the system has reaped
    it. A connection that is made in between would enter it once more, without a pipe: `ValueError: file
    descriptor is None`, which ends the worker (Celery 5.7, `AsynPool.register_with_event_loop`).
    """
    if pool is None or not hasattr(pool, "_track_child_process") or "_track_child_process" in vars(pool):
        return
    track = pool._track_child_process

    def track_living(process: Any, hub: Any) -> None:
        if getattr(process, "_sentinel_poll", process) is not None:
            track(process, hub)

    pool._track_child_process = track_living


def _sever(conn: Any) -> None:
    """Make a lost connection refuse at once whatever is asked of it.

    As Celery closes it, part by part, it sends commands over it and connects for them again (Redis), or waits
    for the answers (AMQP). A broker that does not answer would hold the main loop for the full timeout at
    each, or for good where there is no timeout.
    """
    if conn is not None and getattr(conn.transport, "driver_type", None) == "amqp":
        opened = conn._connection  # the property would connect again
        if hasattr(opened, "collect"):
            opened.collect()
    if not is_redis(conn):
        return

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConnectionRefusedError("The broker was lost.")

    for channel in list(conn.transport.channels or ()):
        pools = [channel.__dict__.get(name) for name in ("_pool", "_async_pool")]
        for pool in pools:
            if pool is not None:
                pool.get_connection = refuse
                pool.disconnect()


class _Events:
    """Celery's event dispatcher, with a thread that does the sending: the main loop never waits for it."""

    #: None for all others: the connection is the thread's alone.
    connection = None

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        self._connection = dispatcher.connection
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque(maxlen=MAX_EVENTS)
        self._news = threading.Event()
        self._ended = False
        threading.Thread(target=self._run, name="jitney-celery-events", daemon=True).start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dispatcher, name)

    def send(self, type: str, **fields: Any) -> None:
        if self._dispatcher.enabled and not self._ended:
            # Never tried again: the next event comes soon, and this one would be old.
            self._waiting.append((type, {**fields, "retry": False}))
            self._news.set()

    def flush(self, **_: Any) -> None:
        """Send what Celery has collected: of a buffered group of events `send` only collects."""
        self._waiting.append(("", {}))
        self._news.set()

    def disable(self) -> None:
        self._dispatcher.enabled = False
        self.close()
        for callback in self._dispatcher.on_disabled:
            callback()

    def close(self) -> None:
        self._ended = True
        self._news.set()

    def _run(self) -> None:
        while not (self._ended and not self._waiting):
            self._news.wait()
            self._news.clear()
            while self._waiting:
                type, fields = self._waiting.popleft()
                try:
                    self._dispatcher.send(type, **fields) if type else self._dispatcher.flush()
                except Exception as error:
                    logger.debug("An event could not be sent: %s", error)
        try:
            self._dispatcher.close()
            self._connection.close()
        except Exception as error:
            logger.debug("The connection of events could not be closed: %s", error)
