"""The state that slices share: made in the main process before the pool forks, inherited by its children."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from bus.client import Bus
from bus.consuming.lane import Lane
from bus.consuming.sizes import Sizes
from bus.consuming.subscriptions import Subscriptions
from bus.errors import BusError
from bus.format.lane_id import LaneId
from bus.streams.wire import Link
from workers.handler_forks import handler_forks
from workers.middleware import default_async_middleware, default_middleware
from workers.progress import Progress
from workers.slices.dispatch import Dispatcher

#: New containers, beyond those freed again, after which the collector looks at the youngest.
GC_THRESHOLD = 10_000


@dataclass
class Runtime:
    """The handlers, the shared memory, and what one slice leaves for the next in the same process."""

    bus: Bus
    subscriptions: Subscriptions
    progress: Progress
    nonce: str
    dispatchers: dict[tuple[str, str], Dispatcher] = field(default_factory=dict)
    lanes: dict[LaneId, tuple[int, Lane]] = field(default_factory=dict)
    """The lanes as the last slice here left them, with its serial: the next one need not ask Redis again."""
    sizes: defaultdict[tuple[str, str], Sizes] = field(default_factory=lambda: defaultdict(Sizes))
    """The known sizes of messages, by topic and group."""
    local: threading.local = field(default_factory=threading.local)
    is_ending: Callable[[], bool] = lambda: False
    """Returns whether somebody ends this pool process by a signal; only Celery's pool knows."""

    def dispatcher(self, topic: str, group: str) -> Dispatcher:
        dispatcher = self.dispatchers.get((topic, group))
        if dispatcher is None:
            subscription = self.subscriptions.get(topic, group)
            if subscription is None:
                raise BusError(f"This process has no handler for group {group!r} of topic {topic!r}.")
            dispatcher = self.dispatchers[topic, group] = Dispatcher(
                subscription,
                default_middleware,
                default_async_middleware,
                run=lambda coroutine: self.runner().run(coroutine),
                is_ending=self.is_ending,
            )
        return dispatcher

    def make_room(self) -> None:
        """Have Python's garbage collector look less often in this process.

        A batch is some 2,500 new containers, which reference counting frees; at the default threshold
        of 700 the collector goes through them, and through Django, several times for nothing: 1.8 of
        7.0 µs for each message. A higher threshold that the project has set, or 0 (off), stays.
        """
        first, *others = gc.get_threshold()
        if 0 < first < GC_THRESHOLD:
            gc.set_threshold(GC_THRESHOLD, *others)

    def runner(self) -> asyncio.Runner:
        """Return the event loop of this process (and thread): one for all slices, so that clients and
        sessions of handlers go on working.
        """
        runner: asyncio.Runner | None = getattr(self.local, "runner", None)
        if runner is None or self.local.runner_pid != os.getpid():
            runner = self.local.runner = asyncio.Runner()
            self.local.runner_pid = os.getpid()
            handler_forks.on_birth = self._end_copy_of_loop
        return runner

    def _end_copy_of_loop(self) -> None:
        """In a process that an `async def` handler has forked off: it may not await anything, or the copied
        loop would go on with all handlers that run here, and with its parent's descriptors."""
        runner: asyncio.Runner | None = getattr(self.local, "runner", None)
        if runner is not None and runner.get_loop().is_running():
            why = RuntimeError("A process that an async def handler has forked off cannot await anything.")
            runner.get_loop().call_soon(handler_forks.end_child, why)

    def close_runner(self) -> None:
        """End the event loop of this thread, if it has one."""
        runner: asyncio.Runner | None = getattr(self.local, "runner", None)
        if runner is not None:
            self.local.runner = None
            runner.close()

    def take_link(self) -> Link | None:
        """Return the link that the last slice of this process (and thread) left, if any."""
        link: Link | None = getattr(self.local, "link", None)
        owner = getattr(self.local, "pid", None)
        self.local.link = None
        return link if owner == os.getpid() else None

    def leave_link(self, link: Link | None) -> None:
        self.local.link, self.local.pid = link, os.getpid()
