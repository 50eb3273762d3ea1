"""The whole consumer of a worker without Celery: its slices run in one thread of the test."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable

from django.db import connections

from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from workers.consumer import Consumer, Host
from workers.order import SliceOrder
from workers.slices.slice import Slice


class InlineWorker:
    """A worker with one slot. Use it as a context manager."""

    def __init__(self, bus: Bus, subscriptions: Iterable[Subscription]) -> None:
        self.consumer = Consumer(bus, subscriptions, slots=1)
        self._orders: deque[SliceOrder] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def name(self) -> str:
        return self.consumer.identity.incarnation

    def __enter__(self) -> InlineWorker:
        host = Host(
            wake=self._wake.set,
            start=self._orders.append,
            free=lambda: 1 - len(self._orders),
            kill=lambda _pid: None,
        )
        self.consumer.start(host, processes=1)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.consumer.drain()
        self._stopping = True
        self._wake.set()
        self._thread.join(20)
        self.consumer.stop()

    def _work(self, order: SliceOrder) -> str | None:
        """Run a slice; what its process died of."""
        Slice(self.consumer.runtime, order).run()
        return None

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(0.1)
            self._wake.clear()
            self.consumer.tick()
            self.consumer.pump()
            while self._orders:
                order = self._orders[0]
                died = self._work(order)
                self._orders.popleft()
                self.consumer.slice_ended(order.slot, died=died)
        link = self.consumer.runtime.take_link()
        if link is not None:
            link.close()
        self.consumer.runtime.close_runner()
        connections.close_all()


class ForkingWorker(InlineWorker):
    """Each of its slices runs in a process of its own, which may die, as in the prefork pool."""

    def _work(self, order: SliceOrder) -> str | None:
        pid = os.fork()
        if not pid:
            try:
                Slice(self.consumer.runtime, order).run()
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        return "worker lost" if status else None
