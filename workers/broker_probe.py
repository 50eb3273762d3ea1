"""Tries Celery's broker, until it is of use."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from kombu.exceptions import OperationalError
from kombu.transport import virtual

from bus.safety.unreadable import shown

#: How often the broker is tried while it is away, and how long a worker that starts waits for its first
#: answer before it begins without it. Seconds.
PROBE_SECONDS = 1.0

AWAY = "The Celery broker is away"
REFUSES = "The Celery broker refuses commands"


def is_redis(conn: Any) -> bool:
    return conn is not None and getattr(conn.transport, "driver_type", None) == "redis"


def refusals(conn: Any) -> tuple[type[BaseException], ...]:
    """Return the exceptions for errors that a Redis replies; none for other brokers, whose channels may fail
    on a connection that is well.
    """
    if not is_redis(conn):
        return ()
    return tuple(error for error in conn.channel_errors if error not in virtual.Transport.channel_errors)


class BrokerProbe(threading.Thread):
    """A thread that tries the broker, with connections of its own, until it is of use."""

    def __init__(self, conn: Any, queues: Iterable[Any] = (), *, pause: float = 0.0) -> None:
        """`queues`: what a Redis is asked to declare. `pause`: before the first attempt, in seconds."""
        super().__init__(name="jitney-broker-probe", daemon=True)
        self._conn = conn
        self._queues = queues
        self._pause = pause
        self._refusals = refusals(conn)
        self._stopping = threading.Event()
        self.wrong = ""
        """What is wrong with the broker, by the last attempt; "" before that."""

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        if self._stopping.wait(self._pause):
            return
        while not self.reaches() and not self._stopping.wait(PROBE_SECONDS):
            pass

    def reaches(self) -> bool:
        errors = (OperationalError, *self._conn.connection_errors, *self._conn.channel_errors)
        with self._conn.clone() as probe:
            try:
                probe.connect()
                channel = probe.default_channel  # transports that connect late do so here
                if self._refusals:
                    # A connection alone says little: reads and pings work where writes are refused. These
                    # are the writes that the worker is about to do itself.
                    for queue in self._queues:
                        queue(channel).declare()
            except errors as error:
                self.wrong = f"{REFUSES} ({shown(str(error))})" if self._is_refusal(error) else AWAY
                return False
        return True

    def _is_refusal(self, error: BaseException) -> bool:
        # Kombu wraps what it meets while it connects.
        return isinstance(error, self._refusals) or isinstance(error.__cause__, self._refusals)
