"""Ties the consumer to the life of a Celery worker: its start, its slices, its stop."""

from __future__ import annotations

import logging
import os
import signal
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from billiard.common import terminate_handler_fired
from celery import bootsteps, signals
from celery.exceptions import ImproperlyConfigured
from celery.worker import state as worker_state
from vine import promise

from bus import default
from workers.broker import PatientConsumer
from workers.consumer import Consumer, Host
from workers.fork_guard import fork_guard
from workers.order import SLICE_TASK, SliceOrder
from workers.slices.runtime import Runtime

logger = logging.getLogger("jitney.workers")

#: Celery's default for the setting worker_consumer; a project's own choice is left alone.
CELERY_CONSUMER = "celery.worker.consumer:Consumer"
#: How often what no event announces is looked for. Seconds.
TICK_SECONDS = 0.1
#: How often billiard is told to look for dead pool processes; by itself it sees some only after 5 s. Seconds.
MAINTAIN_SECONDS = 0.5


class BusWorkerStep(bootsteps.Step):  # type: ignore[misc]  # Celery has no types
    """Makes, before the pool forks, what the pool's children inherit."""

    # Made after the pool's settings are known; the pool itself forks later, when it is started.
    requires = ("celery.worker.components:Pool",)
    label = "Bus"
    runtime: ClassVar[Runtime | None] = None

    def __init__(self, worker: Any, groups: str | None = None, no_bus: bool = False, **_: Any) -> None:
        worker.bus_consumer = None
        if no_bus:
            return
        names = [part.strip() for part in groups.split(",") if part.strip()] if groups else None
        worker.bus_consumer = make_consumer(worker, names)
        if worker.bus_consumer is not None:
            type(self).runtime = worker.bus_consumer.runtime
            worker.bus_consumer.runtime.is_ending = terminate_handler_fired
            if worker.consumer_cls == CELERY_CONSUMER:
                worker.consumer_cls = PatientConsumer


def make_consumer(worker: Any, groups: list[str] | None) -> Consumer | None:
    """Make the consumer of this worker; None if nothing is subscribed. Raises ImproperlyConfigured."""
    from django.utils.module_loading import autodiscover_modules

    autodiscover_modules("topics")
    autodiscover_modules("consumers")
    bus = default.get()
    serving = groups or bus.settings.groups
    subscribed = {subscription.group for subscription in default.subscriptions}
    unknown = set(serving or ()) - subscribed
    if unknown:
        raise ImproperlyConfigured(
            f"No handler is subscribed for the group(s) {', '.join(sorted(unknown))}. "
            f"Known groups: {', '.join(sorted(subscribed)) or 'none'}."
        )
    mine = [served for served in default.subscriptions if serving is None or served.group in serving]
    if not mine:
        logger.warning("No handler is subscribed (is there a consumers.py?): this worker consumes no topics.")
        return None
    _check_pool(worker)
    _check_transport(worker)
    return Consumer(bus, mine, slots=slots_of(worker, bus.settings.slots))


def _check_pool(worker: Any) -> None:
    name = worker.pool_cls if isinstance(worker.pool_cls, str) else worker.pool_cls.__module__
    if not any(kind in name for kind in ("prefork", "thread")):
        raise ImproperlyConfigured(
            f"The bus consumes in the prefork and threads pools, not in {name!r}. Start this worker with "
            "`--pool prefork` or `--pool threads`, or with `--no-bus`."
        )


def _check_transport(worker: Any) -> None:
    """Refuse a transport without an event loop: there nobody could start a slice, nor end what has begun."""
    if not worker.use_eventloop:
        transport = worker.app.connection_for_read().transport
        raise ImproperlyConfigured(
            "The bus needs a Celery broker whose transport has an event loop (Redis, AMQP, SQS), and a "
            "process that is not patched by gevent or eventlet; "
            f"{type(transport).__name__} of {type(transport).__module__} gives none here. "
            "Start this worker with another broker, or with `--no-bus`."
        )


def slots_of(worker: Any, configured: int | None) -> int:
    """Return how many slices may run at once: as configured, else all processes, less one for other tasks."""
    processes = int(worker.max_concurrency or worker.concurrency or 1)
    if configured is not None:
        return min(configured, processes)
    ordinary = [name for name in worker.app.tasks if not name.startswith(("celery.", "jitney."))]
    return max(1, processes - 1) if ordinary else processes


class BusConsumerStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Runs the bus's consumer beside Celery's own, through broker reconnects, until the worker stops."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    label = "Bus"

    def __init__(self, consumer: Any, **_: Any) -> None:
        self._consumer: Consumer | None = getattr(consumer.controller, "bus_consumer", None)
        self._slices: _Slices | None = None
        if isinstance(consumer, PatientConsumer):
            consumer.begin = lambda: self.start(consumer)
            consumer.end_at_once = lambda: self._shutting_down("Cold")

    def include_if(self, _consumer: Any) -> bool:
        return self._consumer is not None

    def start(self, c: Any) -> None:
        """Start: the broker is connected, for the first time or again, or does not answer a new worker."""
        assert self._consumer is not None
        if self._slices is None:
            self._slices = _Slices(c, self._consumer)
            host = self._slices.host()
            signals.worker_shutting_down.connect(self._shutting_down, weak=False)
            fork_guard.arm()
            self._consumer.start(host, processes=c.pool.num_processes)
        self._slices.keep_time()

    def stop(self, c: Any) -> None:
        """Stop: the connection to the broker was lost, or the worker stops."""
        running = c.blueprint.state == bootsteps.RUN
        if running and self._slices is not None:
            self._slices.find_dropped()
            self._slices.keep_time()  # Celery has cancelled the timers with the connection
        if not running and self._consumer is not None:
            # What Celery has dropped may run in a process that has not said so yet. It keeps its leases, so
            # that it can settle; they are given back when the pool has ended (see `shutdown`).
            self._consumer.drain()

    def shutdown(self, _c: Any) -> None:
        """Give all lanes back: the pool has ended."""
        if self._consumer is not None:
            self._consumer.stop(exits=True)

    def _shutting_down(self, how: str = "Warm", **_: Any) -> None:
        """Stop fetching at once. The signal handler calls this before anything else of the shutdown."""
        if self._consumer is not None:
            self._consumer.drain(how)


class _Slices:
    """Starts slices as Celery requests, in the main loop, and hears of their ends.

    A request (not a bare pool job) brings events, inspect, revoke, autoscale, max-tasks-per-child and
    Django's connection care.
    """

    def __init__(self, c: Any, consumer: Consumer) -> None:
        self._c = c
        self._hub = c.hub
        self._consumer = consumer
        self._sent: dict[str, _Sent] = {}
        self._mail: deque[Callable[[], None]] = deque()
        self._timers: list[Any] = []
        self._pump = promise(self._on_pump)

    def host(self) -> Host:
        return Host(wake=self.wake, start=self.start, free=self.free, kill=self.kill)

    def keep_time(self) -> None:
        for timer in self._timers:
            timer.cancel()  # of the connection before
        self._timers = [self._hub.call_repeatedly(TICK_SECONDS, self._tick)]
        if hasattr(self._c.pool, "maintain_pool"):
            self._timers.append(self._hub.call_repeatedly(MAINTAIN_SECONDS, self._c.pool.maintain_pool))
        self.wake()

    def wake(self) -> None:
        """Wake the main loop, from any thread.

        `call_soon` keeps a set: many wakes before its next round are one.
        """
        self._hub.call_soon(self._pump)

    def free(self) -> int:
        processes = int(self._c.pool.num_processes)
        if self._c.controller.autoscaler is not None:
            processes += 1  # a slice that waits: Celery grows the pool when more is asked of it than it has
        return max(0, min(self._consumer.slots, processes) - len(self._sent))

    def start(self, order: SliceOrder) -> None:
        message = _SliceMessage(SLICE_TASK, order, self._c.hostname)
        sent = self._sent[message.task_id] = _Sent(order.slot)
        self._c.strategies[SLICE_TASK](
            message,
            None,
            lambda *_: self._over(message.task_id),
            lambda *_args, **_kwargs: self._over(message.task_id),
            [sent.accept, *self._c.on_task_message],  # the latter is how the autoscaler hears of work
        )

    def kill(self, pid: int) -> None:
        """End a pool process. In the threads pool there is none: the only process is the worker itself."""
        if pid in (0, os.getpid()):
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def find_dropped(self) -> None:
        """Take in which requests Celery has dropped without a word: those that no process had accepted yet.

        What the pool still has goes on and reports as ever. One that it has dropped may yet be on its way to
        a process: the consumer sees to that.
        """
        kept = self._in_pool()
        for task_id, sent in list(self._sent.items()):
            if kept is not None and task_id not in kept:
                del self._sent[task_id]
                self._consumer.slice_dropped(sent.slot)

    def _in_pool(self) -> set[str] | None:
        """Return the ids of the requests that the prefork pool still has; None for the threads pool."""
        jobs = getattr(getattr(self._c.pool, "_pool", None), "_cache", None)
        return None if jobs is None else {job.correlation_id for job in list(jobs.values())}

    def _over(self, task_id: str) -> None:
        """Take in the end of a request, in the main loop or (threads pool) in a pool thread."""
        if self._consumer.scheduler.stopped:
            # The loop makes no more rounds while the pool ends: lanes are given back from here.
            self._ended(task_id)
            return
        self._mail.append(lambda: self._ended(task_id))
        self.wake()

    def _ended(self, task_id: str) -> None:
        sent = self._sent.pop(task_id, None)
        if sent is None:
            return
        view = self._consumer.progress.read(sent.slot)
        if view.reports:
            self._consumer.slice_ended(sent.slot)
        elif sent.request is not None and sent.request.id in worker_state.revoked:
            # Celery says so before the process has ended; it must not go on under the same lease.
            self.kill(view.pid)
            self._consumer.slice_dropped(sent.slot, reason="revoked")
        else:
            self._consumer.slice_ended(sent.slot, died=self._consumer.why_killed(sent.slot))

    def _on_pump(self) -> None:
        while self._mail:
            self._mail.popleft()()
        pool = self._c.pool
        if pool is not None and getattr(pool, "active", True):
            self._consumer.pump()

    def _tick(self) -> None:
        self._consumer.tick()
        reason = self._consumer.why_stalled()
        if reason:
            logger.critical("This worker cannot consume any more (%s) and exits, to be restarted.", reason)
            from celery.exceptions import WorkerShutdown

            raise WorkerShutdown(1)


class _Sent:
    """A slice that was handed to Celery."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.request: Any = None

    def accept(self, request: Any) -> None:
        """Take the request that the strategy made of the message."""
        self.request = request


class _SliceMessage:
    """A message for a slice, in the form in which Celery's strategy takes messages from a broker."""

    delivery_info: ClassVar[dict[str, Any]] = {
        "exchange": "",
        "routing_key": "",
        "priority": 0,
        "redelivered": False,
    }
    content_type = "application/x-jitney"
    content_encoding = "binary"
    body = b""

    def __init__(self, task: str, order: SliceOrder, hostname: str) -> None:
        first = order.lanes[0].id
        # The id changes with every slice: Celery remembers revoked ones for hours.
        task_id = self.task_id = f"slice-{uuid.uuid4()}"
        shown = f"({first.topic}/{first.partition} for {first.group}, {len(order.lanes)} lane(s))"
        self.headers = {
            "lang": "py",
            "task": task,
            "id": task_id,
            "root_id": task_id,
            "argsrepr": shown,
            "kwargsrepr": "{}",
            "origin": hostname,
            "timelimit": (None, None),
        }
        self.payload = {"args": (order,), "kwargs": {}, "id": task_id, "task": task}
        self.properties = {"correlation_id": task_id, "reply_to": ""}
