"""Ties membership, watcher and scheduler together to the consumer of one worker. No Celery here.

What only Celery can do (start a slice in the pool, wake the main loop, end a pool process) comes in as
functions, so tests run the whole of it without Celery.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bus.client import Bus
from bus.consuming.handlers.running import check_runs
from bus.consuming.subscriptions import Subscription, Subscriptions
from bus.format.lane_id import LaneId
from bus.safety.complaints import Complaints
from bus.signals import lease_lost
from bus.transactions.inbox import check_databases
from workers.fork_guard import guarded
from workers.loop_watch import LoopWatch
from workers.membership.identity import this_process
from workers.membership.keeper import Keeper
from workers.order import SliceOrder
from workers.progress import Progress
from workers.scheduling.owned import Ended
from workers.scheduling.scheduler import Scheduler
from workers.scheduling.watcher import Watcher
from workers.slices import failures
from workers.slices.runtime import Runtime
from workers.upkeep.chores import Chores
from workers.upkeep.threads import Upkeep

logger = logging.getLogger("jitney.workers")
#: What may happen to many lanes in one moment: one line a second for each cause, which counts the others.
bursts = Complaints(logger, seconds=1.0)

#: The line of the log about a lane whose slices break.
BROKEN = (
    "%s/%s for %s: %s slice(s) in a row were broken off by an error, which this log has; it is tried again."
)

#: A thread that did not go round its loop for so long hangs: every wait in it is shorter. Seconds.
STALLED_SECONDS = 120.0

#: Slots beyond those in use, for slices that Celery has dropped and that may still run.
SPARE_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Host:
    """The Celery worker in which the consumer runs, as far as the consumer needs it."""

    wake: Callable[[], None]
    """Has `Consumer.pump` called soon in the main loop; from any thread."""
    start: Callable[[SliceOrder], None]
    """Starts a slice in the pool; its end is reported to `Consumer.slice_ended`."""
    free: Callable[[], int]
    """Returns how many more slices the pool could run now."""
    kill: Callable[[int], None]
    """Ends the pool process with this pid, which runs a message beyond its hard time limit."""


class Consumer:
    """The consumer of this worker's subscriptions, at work from `start` to `stop`."""

    def __init__(self, bus: Bus, subscriptions: Iterable[Subscription], *, slots: int) -> None:
        """Make it in the main process before the pool forks: its children inherit `runtime`.

        Raises ConfigurationError for a handler that cannot be run, or is atomic in an unknown database.
        """
        self.bus = bus
        self.slots = slots
        self.subscriptions = Subscriptions()
        for subscription in subscriptions:
            what = f"subscribe({subscription.topic!r}, group={subscription.group!r})"
            check_runs(subscription.handler, what)
            self.subscriptions.add(subscription)
        check_databases(self.subscriptions)
        self.identity = this_process()
        self.progress = Progress(slots + SPARE_SLOTS)
        self.runtime = Runtime(bus, self.subscriptions, self.progress, secrets.token_hex(16))
        self.scheduler = Scheduler(self.progress, slots, self.runtime.nonce)
        self._overdue: set[int] = set()
        """Slots whose process was killed because of the hard time limit."""
        self._ticked = self._awake_since = time.monotonic()
        self._host: Host | None = None
        self._membership: Keeper | None = None
        self._watcher: Watcher | None = None
        self._upkeep: list[Upkeep] = []
        self._loop_watch = LoopWatch(self._on_loop_change, self._is_handling)

    # ------------------------------------------------------------------ life

    def start(self, host: Host, *, processes: int) -> None:
        """Start the threads, which take lanes. Raises nothing while Redis is away, but goes on trying."""
        self._host = host
        self.bus.registry.find_elsewhere = guarded(self.bus.registry.find_elsewhere)
        self._watcher = Watcher(
            self.bus, self.scheduler, on_work=host.wake, on_hint=self._on_hint, on_strays=self._on_strays
        )
        self._membership = Keeper(
            self.bus,
            self.identity,
            self.subscriptions,
            self.scheduler,
            slots=self.slots,
            processes=processes,
            on_change=self._on_lanes_change,
        )
        self._upkeep = Chores(self.bus).threads(self._is_leader)
        self._loop_watch.note_round()
        for thread in (self._membership, self._watcher, *self._upkeep, self._loop_watch):
            thread.start()
        names = ", ".join(f"{served.topic} for {served.group}" for served in self.subscriptions)
        logger.info(
            "Consuming %s as %s, at most %s slices at once.", names, self.identity.incarnation, self.slots
        )

    def drain(self, how: str = "Warm") -> None:
        """Start no new slices.

        Those that run finish the message in hand and settle. Safe in a signal handler.

        `how`: "Cold" if the worker is to end at once.
        """
        if how == "Cold" or not self.scheduler.stopped:
            self._loop_watch.note_stop(how)
        self.scheduler.stopped = True
        self.progress.set_drain()
        if self._membership is not None:
            self._membership.look()  # idle lanes need not wait for the end of the pool

    def stop(self, *, exits: bool = False) -> None:
        """Give the lanes back and end the threads, after the pool has ended.

        `exits`: the process ends after this, and the watch over the main loop goes on until then.
        """
        self.drain()
        self._loop_watch.note_pool_end()
        watch = () if exits else (self._loop_watch,)
        threads = (self._watcher, *self._upkeep, self._membership, *watch)
        for thread in threads:
            if thread is not None:
                thread.stop()
        for thread in threads:
            if thread is not None and thread.ident is not None:
                thread.join(timeout=self.bus.settings.timeout + 1)
        if self._membership is not None:
            self._membership.leave()
        self.bus.close()

    # ------------------------------------------------------------------ in the main loop

    def pump(self) -> None:
        """Start as many slices as there are lanes with work and free processes."""
        host = self._host
        if host is None or self.scheduler.stopped:
            return
        for order in self.scheduler.next_slices(host.free()):
            host.start(order)
        clients = self.scheduler.lingering()
        if clients and self._membership is not None:
            self._membership.unblock(clients)

    def slice_ended(self, slot: int, *, died: str | None = None) -> None:
        """Take in that a slice has ended. `died`: why its process was lost with it, if it was."""
        self._overdue.discard(slot)
        self._act_on(self.scheduler.ended(slot, died=died))
        self._on_lanes_change()

    def slice_dropped(self, slot: int, *, reason: str = "") -> None:
        """Take in that Celery has dropped a slice.

        A process may still work on it, so its lanes get new leases first.
        """
        self._overdue.discard(slot)
        self.scheduler.dropped(slot, reason)
        self._take_back()
        self._on_lanes_change()

    def why_killed(self, slot: int) -> str:
        """Return the reason for the death of the process in this slot."""
        overdue = slot in self._overdue
        self._overdue.discard(slot)
        return "time limit" if overdue else "worker lost"

    def tick(self) -> None:
        """Look, every 0.1 s, for what no event announces: stuck slices and hard time limits."""
        self._loop_watch.note_round()
        self._take_back()
        self.scheduler.share_out()
        for slot in self.scheduler.overdue(self._hard_limit):
            pid = self.progress.read(slot).pid
            if slot not in self._overdue and self._host is not None:
                self._overdue.add(slot)
                logger.error("A message runs beyond its time_limit; its process %s is ended.", pid)
                self._host.kill(pid)

    def _take_back(self) -> None:
        assert self._membership is not None
        for lane in self.scheduler.taken_back():
            self._membership.renew(lane)

    def why_stalled(self) -> str:
        """Return why this worker can do no more work; "" if it can. Asked at every tick."""
        now, before = time.monotonic(), self._ticked
        self._ticked = now
        if now - before > STALLED_SECONDS / 4:
            self._awake_since = now  # the whole process was frozen: its threads must run first
        for thread in (self._membership, self._watcher):
            if thread is None or self.scheduler.stopped:
                continue
            if not thread.is_alive():
                return f"the thread {thread.name} has ended"
            if now - max(thread.heard_at, self._awake_since) > STALLED_SECONDS:
                return f"the thread {thread.name} has done nothing for {STALLED_SECONDS:.0f} s"
        return ""

    # ------------------------------------------------------------------ inner

    def _act_on(self, ended: Ended) -> None:
        """Do in Redis what follows from the end of a slice."""
        assert self._membership is not None
        if ended.free:
            self._membership.release()
        for lane in ended.lost:
            failures.announce(lease_lost, type(self), lane=lane.id)
        for lane in ended.broken:
            bursts.say(
                "broken", BROKEN, lane.id.topic, lane.id.partition, lane.id.group,
                lane.troubles, level=logging.ERROR,
            )  # fmt: skip
        if ended.gone:
            self._membership.repair()
        elif ended.lost:
            self._membership.look()

    def _on_lanes_change(self) -> None:
        if self._watcher is not None:
            self._watcher.poke()
        if self._host is not None:
            self._host.wake()

    def _on_hint(self) -> None:
        if self._membership is not None:
            self._membership.look()

    def _on_strays(self) -> None:
        if self._membership is not None:
            self._membership.strays.note_hint()

    def _on_loop_change(self) -> None:
        self.scheduler.standing = self._loop_watch.standing
        if self._loop_watch.standing:
            self.progress.set_drain()
        elif not self.scheduler.stopped:
            self.progress.end_drain()
            if self.scheduler.stopped:
                self.progress.set_drain()  # a signal has come in between
        if self._membership is not None:
            self._membership.look()

    def _is_handling(self) -> bool:
        return any(self.progress.read(slot).running is not None for slot in range(self.progress.slots))

    def _is_leader(self) -> bool:
        return self._membership is not None and self._membership.leads

    def _hard_limit(self, lane: LaneId) -> float | None:
        subscription = self.subscriptions.get(lane.topic, lane.group)
        return subscription.time_limit if subscription else None
