"""Calls the functions of `bus` that are due, in the first live worker in sort order.

Two at once do no harm: each step is one script per partition.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from bus import retention
from bus.client import Bus
from bus.errors import BusError

logger = logging.getLogger("jitney.workers")

#: How often topics are trimmed. Seconds.
TRIM_SECONDS = 30.0


class Upkeep(threading.Thread):
    """The housekeeping thread of one worker."""

    def __init__(self, bus: Bus, *, is_leader: Callable[[], bool]) -> None:
        super().__init__(name="jitney-upkeep", daemon=True)
        self._bus = bus
        self._is_leader = is_leader
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.wait(TRIM_SECONDS):
            if self._is_leader():
                self._trim()

    def _trim(self) -> None:
        try:
            trimmed = retention.trim_all(self._bus)
        except BusError as error:
            logger.warning("Old messages could not be trimmed now; this is tried again: %s", error)
            return
        if trimmed:
            logger.info("Trimmed %s settled messages that were older than their topic keeps.", trimmed)
