"""Blocks on the idle lanes and the control stream, and tells the scheduler what has news.

One connection over everything that is idle: XREAD BLOCK from the last id that the group was given. When
the list of idle lanes changes, the block is ended by CLIENT UNBLOCK over a second connection, not by
polling.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable

from bus.client import Bus
from bus.errors import BusError, Forbidden
from bus.format import strangers
from bus.format.lane_id import LaneId
from bus.safety.complaints import Complaints
from bus.safety.unreadable import tell
from bus.streams.commands import is_wrongtype
from bus.streams.connect import check, is_forbidden
from bus.streams.wire import Link, pack
from bus.topics.registry import RESTORED, STRAYS
from bus.values import RetryPolicy, id_pair
from workers.scheduling.scheduler import Scheduler

logger = logging.getLogger("jitney.workers")
complaints = Complaints(logger)

#: The waits between two tries to reach Redis again, each twice as long as the one before.
RECONNECT = RetryPolicy(delay=0.1, max_delay=2.0, jitter=0.5)
#: Where the server does not let us end a block, it is so short. Seconds.
DEAF_SECONDS = 0.25
#: Longest block: well below any sensible socket timeout, so that a server that hangs is noticed. Seconds.
BLOCK_SECONDS = 4.0
#: An id of the control stream that is so far ahead of our clock is not waited for. Seconds.
AHEAD_SECONDS = 60.0
#: How long a key that is no stream, since somebody has put something in its place, is left out. Seconds.
STRANGER_SECONDS = 5.0


class Watcher(threading.Thread):
    """The waiting thread of one worker."""

    def __init__(
        self,
        bus: Bus,
        scheduler: Scheduler,
        *,
        on_work: Callable[[], None],
        on_hint: Callable[[], None],
        on_strays: Callable[[], None],
    ) -> None:
        """`on_work`: lanes became ready. `on_hint`: something happened that membership should look at.
        `on_strays`: before such a hint, that lanes may bear our name that we do not hold.
        """
        super().__init__(name="jitney-watcher", daemon=True)
        self._bus = bus
        self._scheduler = scheduler
        self._on_work = on_work
        self._on_hint = on_hint
        self._on_strays = on_strays
        self._stopping = threading.Event()
        self._hear, self._say = os.pipe()
        os.set_blocking(self._say, False)
        os.set_blocking(self._hear, False)
        self._link: Link | None = None
        self._control_id = "$"
        self._doubting = False
        self._strangers: dict[str, float] = {}
        """Keys that are no streams, and until when they are left out, by the monotonic clock."""
        self._deaf = False
        """Whether the server forbids to end a block from another connection."""
        self.heard_at = time.monotonic()
        """When this thread last went round its loop, by the monotonic clock."""

    def poke(self) -> None:
        """The list of idle lanes, or a due time, has changed. From any thread; never blocks."""
        try:
            os.write(self._say, b".")
        except BlockingIOError:
            return  # the pipe is full of pokes: one is enough

    def stop(self) -> None:
        self._stopping.set()
        self.poke()

    def run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self.heard_at = time.monotonic()
            try:
                self._watch_once()
                failures = 0
            except BusError as error:
                complaints.trouble(error, "The watcher lost Redis and connects again: %s", error)
                self._drop_link()
                self._control_id = "$"
                self._doubting = True
                failures += 1
                self._stopping.wait(RECONNECT.delay_after(failures))
                self._on_hint()
        self._drop_link()

    def _watch_once(self) -> None:
        link = self._connected()
        self._look_below_what_is_ahead(link)
        if self._doubting:
            self._doubting = False
            self._scheduler.doubt()
            self._on_work()
        self._drain_pokes()
        if self._control_id == "$" and self._without_strangers({self._bus.keys.control: ""}):
            # Everything before this moment is covered by the look that follows a new connection.
            self._control_id = self._last_control_id(link)
        if self._scheduler.wake_due():
            self._on_work()
        timeout = self._timeout()
        watched = self._scheduler.watched()
        positions = self._without_strangers(
            {self._bus.keys.control: self._control_id, **self._positions(watched)}
        )
        if not positions:
            select.select([self._hear], [], [], timeout)
            return
        milliseconds = max(1, int(timeout * 1000))
        link.send(
            pack(("XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS", *positions, *positions.values())), 1
        )
        self._wait_for_reply(link)
        reply = link.receive()
        if is_wrongtype(reply):
            self._find_strangers(link, positions, watched)
        else:
            self._take_in(check(reply), watched)

    def _look_below_what_is_ahead(self, link: Link) -> None:
        """If the last id of the control stream is ahead of the clock, somebody else wrote it. Once that is
        removed no hint would ever exceed it.
        """
        before = self._control_id
        if before != "$" and id_pair(before)[0] > (time.time() + AHEAD_SECONDS) * 1000:
            self._control_id = self._last_control_id(link)
            self._doubting = self._doubting or self._control_id != before

    def _find_strangers(self, link: Link, positions: dict[str, str], watched: dict[LaneId, str]) -> None:
        """One of the keys is no stream, and it would end the wait for all: it is left out for a while."""
        types = dict.fromkeys(positions, "stream")
        foreign = {key.key: key for key in strangers.among(types, link.pipe(strangers.commands(types)))}
        until = time.monotonic() + STRANGER_SECONDS
        self._strangers.update(dict.fromkeys(foreign, until))
        for unreadable in foreign.values():
            tell(unreadable)
        # Their slices find out, and try again until the keys are gone.
        if self._scheduler.wake([lane for lane in watched if self._stream(lane) in foreign]):
            self._on_work()

    def _without_strangers(self, positions: dict[str, str]) -> dict[str, str]:
        if not self._strangers:
            return positions
        now = time.monotonic()
        self._strangers = {key: until for key, until in self._strangers.items() if until > now}
        return {key: last_id for key, last_id in positions.items() if key not in self._strangers}

    def _positions(self, watched: dict[LaneId, str]) -> dict[str, str]:
        """Stream → the id after which a message is news to one of its groups.

        Of the lanes of one group the greatest: it is where the group is. Of the groups the least.
        """
        groups: dict[tuple[str, str], str] = {}
        for lane, last_id in watched.items():
            place = (self._stream(lane), lane.group)
            so_far = groups.get(place, last_id)
            # Mostly they are equal, and ids are compared for nothing.
            groups[place] = last_id if so_far == last_id else max(so_far, last_id, key=id_pair)
        positions: dict[str, str] = {}
        for (stream, _group), last_id in groups.items():
            so_far = positions.get(stream, last_id)
            positions[stream] = last_id if so_far == last_id else min(so_far, last_id, key=id_pair)
        return positions

    def _take_in(self, reply: object, watched: dict[LaneId, str]) -> None:
        news = {raw.decode(): entries for raw, entries in reply} if isinstance(reply, list) else {}
        control = news.pop(self._bus.keys.control, None)
        if control:
            self._control_id = control[-1][0].decode()
            self._doubting = self._doubting or RESTORED.encode() in control[-1][1]
            if STRAYS.encode() in control[-1][1]:
                self._on_strays()
            self._on_hint()
        if not news:
            return
        newest = {stream: id_pair(entries[-1][0]) for stream, entries in news.items()}
        behind = [
            lane
            for lane, last_id in watched.items()
            if id_pair(last_id) < newest.get(self._stream(lane), (0, 0))
        ]
        if self._scheduler.wake(behind):
            self._on_work()

    def _wait_for_reply(self, link: Link) -> None:
        """Wait for the reply or a poke; a poke ends the block on the server."""
        sources = [link.fileno(), self._hear]
        readable, _, _ = select.select(sources, [], [], BLOCK_SECONDS + self._bus.settings.timeout)
        # 0 means that the server has not come to the XREAD yet, or that its reply is on the way.
        while readable == [self._hear] and not self._deaf and not self._unblocked(link):
            if select.select([link.fileno()], [], [], 0.001)[0]:
                break

    def _unblocked(self, link: Link) -> bool:
        try:
            return bool(self._bus.client.call("CLIENT", "UNBLOCK", link.client_id))
        except Forbidden as error:
            self._go_deaf(error)
            return True

    def _go_deaf(self, error: object) -> None:
        """Nobody can end our blocks: then they are short."""
        self._deaf = True
        complaints.say("deaf", "New work is looked for every %s s, since it cannot be waited for: %s",
                       DEAF_SECONDS, error)  # fmt: skip

    def _timeout(self) -> float:
        due = self._scheduler.next_due()
        block = min(DEAF_SECONDS if self._deaf else BLOCK_SECONDS, self._bus.settings.timeout * 0.8)
        return block if due is None else max(0.0, min(block, due - time.monotonic()))

    def _stream(self, lane: LaneId) -> str:
        return self._bus.keys.partition(lane.topic, lane.partition).stream

    def _last_control_id(self, link: Link) -> str:
        reply = link.call("XREVRANGE", self._bus.keys.control, "+", "-", "COUNT", 1)
        self._on_hint()
        if strangers.stands_at(self._bus.keys.control, reply):
            self._strangers[self._bus.keys.control] = time.monotonic() + STRANGER_SECONDS
            return "$"
        newest = check(reply)
        return newest[0][0].decode() if newest else "0-0"

    def _connected(self) -> Link:
        if self._link is None or self._link.closed:
            self._link = self._bus.endpoint.connect(timeout=BLOCK_SECONDS + self._bus.settings.timeout)
            client_id = self._link.call("CLIENT", "ID")
            if is_forbidden(client_id):
                self._go_deaf(client_id)
            else:
                self._link.client_id = int(check(client_id))
        return self._link

    def _drain_pokes(self) -> None:
        try:
            os.read(self._hear, 65536)
        except BlockingIOError:
            return

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
