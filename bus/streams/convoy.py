"""Lets many threads share round trips: the first in line sends the commands of all.

A few threads are faster each on a connection of its own. A crowd gets into its own way. Then all but LEADERS
line up. When a round trip ends, whoever stands first in the line sends for all of it.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from bus.errors import BusError, BusUnavailable, ReplyLost
from bus.streams.connect import Client, check, is_demoted

#: With more callers than this at once, they line up (measured: see docs/performance.md).
CROWD = 40
#: Round trips under way at once in a crowd.
LEADERS = 1
#: The most commands in one convoy, and about the most bytes: if its connection breaks, so many are uncertain.
_LONGEST = 500
_LARGEST = 1 << 20


_NONE_YET = object()
"""Stands for a reply that has not come yet. (nil is a reply.)"""


class _Caller:
    """One thread that stands in the line."""

    __slots__ = ("called", "convoy", "error", "packed", "reply")

    def __init__(self, packed: bytes) -> None:
        self.packed = packed
        self.called = threading.Lock()
        self.called.acquire()
        self.convoy: list[_Caller] = []
        """The callers for which this thread sends; empty if another thread sends for it."""
        self.reply: Any = _NONE_YET
        self.error: BusError | None = None


class Convoy:
    """Sends commands over a client's links. Thread-safe. A forked child begins with an empty line."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._line: list[_Caller] = []
        self._inside = 0
        self._leaders = 0
        self._pid = os.getpid()  # last: another thread of this process may look at it now

    def call(self, packed: bytes) -> Any:
        """Send one packed command and return its reply. Raises what `Client.call` raises."""
        if self._pid != os.getpid():
            self._begin()
        caller: _Caller | None = None
        with self._lock:
            self._inside += 1
            if self._inside > CROWD and self._leaders >= LEADERS:
                caller = _Caller(packed)
                self._line.append(caller)
            else:
                self._leaders += 1
        try:
            return self._client.call_packed(packed) if caller is None else self._wait(caller)
        finally:
            self._leave(led=caller is None or bool(caller.convoy))

    def _wait(self, caller: _Caller) -> Any:
        try:
            caller.called.acquire()
        except BaseException:
            self._give_way(caller)
            raise
        if caller.convoy:
            self._lead(caller.convoy)
        if caller.error is not None:
            raise caller.error
        return check(caller.reply)

    def _give_way(self, caller: _Caller) -> None:
        """Leave the line after a signal broke the wait, and free those for whom this caller was to send."""
        with self._lock:
            if caller in self._line:
                self._line.remove(caller)
                return
        caller.called.acquire()  # somebody has called, or is about to
        for other in caller.convoy[1:]:
            other.error = BusUnavailable("Whoever was to send this was interrupted; it was not sent.")
            other.called.release()

    def _leave(self, *, led: bool) -> None:
        """Leave with a reply. A caller that led has the first in the line send for all of it."""
        convoy: list[_Caller] = []
        with self._lock:
            self._inside -= 1
            if not led:
                return
            size = 0
            while self._leaders <= LEADERS and self._line and len(convoy) < _LONGEST and size < _LARGEST:
                caller = self._line.pop(0)
                size += len(caller.packed)
                convoy.append(caller)
            if not convoy:
                self._leaders -= 1
        if convoy:
            convoy[0].convoy = convoy
            convoy[0].called.release()

    def _lead(self, convoy: list[_Caller]) -> None:
        try:
            self._send(convoy)
        except BaseException as error:
            # Those who wait must hear of it, whatever it is.
            for caller in convoy:
                if caller.reply is _NONE_YET and caller.error is None:
                    caller.error = error if isinstance(error, BusError) else ReplyLost(repr(error))
            if not isinstance(error, BusError):
                raise
        finally:
            for caller in convoy[1:]:
                caller.called.release()

    def _send(self, convoy: list[_Caller]) -> None:
        link = self._client.borrow()
        try:
            link.send(b"".join([caller.packed for caller in convoy]), len(convoy))
            for caller in convoy:
                caller.reply = link.receive()
            if any(is_demoted(caller.reply) for caller in convoy):
                link.close()
        finally:
            self._client.give_back(link)
