"""A server that comes back with older data again and again, also within slices, while processes die.

Far worse than any real day. More seeds, once something here has changed:

    SEEDS=300 python -m pytest -n 4 tests/integration/test_older_storm.py
"""

from __future__ import annotations

import os
import random

import pytest

from bus.errors import Retry
from bus.streams import history
from tests.integration.test_lane import GROUP, Killed, Worker, around

__all__ = ["around"]

MESSAGES = 400
KEYS = 8


class Storm:
    """One worker on one partition. Numbers of one key rise, and are first handled in that order."""

    def __init__(self, server, seed, monkeypatch):
        self.random = random.Random(seed)
        self.lives = 1
        monkeypatch.setattr(history, "ask", lambda link: self.lives)
        self.worker = Worker(server, self.handle, attempts=1000)
        self.calm = False
        self.first, self.trail, self.moments = [], [], []
        self.worker.acquire(self.worker.lane(0))

    def handle(self, message):
        chance = self.random.random()
        self.trail.append((message.value, message.attempt, self.process))
        if not self.calm:
            if chance < 0.12:
                self.trail.append("fails")
                raise Retry(delay=self.random.choice((0, 0.05)))
            if chance < 0.14:
                self.trail.append("dies")
                Killed.now = True
                raise Killed
            if chance < 0.17:
                self.fail_over()
        if message.value not in self.first:
            self.first.append(message.value)

    def names(self):
        keys = self.worker.keys()
        return [keys.stream, keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP), keys.mark(GROUP),
                keys.dead(GROUP), keys.lease(GROUP, "0")]  # fmt: skip

    def waiting(self):
        call, keys = self.worker.bus.client.call, self.worker.keys()
        return [
            call("XPENDING", keys.stream, GROUP),
            call("ZRANGE", keys.retry(GROUP), 0, -1),
            call("ZRANGE", keys.held(GROUP), 0, -1),
        ]

    def note(self):
        call = self.worker.bus.client.call
        self.moments.append([call("DUMP", name) for name in self.names()])

    def fail_over(self):
        """All of it is as it was a moment ago, and all connections lead to another process."""
        self.trail.append("failover")
        call = self.worker.bus.client.call
        back = self.random.randint(1, min(4, len(self.moments)))
        for name, dump in zip(self.names(), self.moments[-back], strict=True):
            call("DEL", name)
            if dump is not None:
                call("RESTORE", name, 0, dump)
        del self.moments[len(self.moments) - back + 1 :]
        self.lives += 1
        self.worker.bus.client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def run(self):
        self.worker.publish(MESSAGES, keys=KEYS)
        self.note()
        self.process = 0
        for step in range(400):
            self.calm = self.calm or self.random.random() < 0.003 or step > 120
            if not self.worker.scheduler.owned():
                self.worker.acquire(self.worker.lane(0))
            self.worker.wake()
            self.process = self.random.randrange(2)
            self.worker.step(self.process)
            self.trail.append("|")
            if self.worker.gone:
                self.worker.repair()
            self.note()
            if not self.calm and self.random.random() < 0.1:
                self.fail_over()
            if self.calm and len(self.first) == MESSAGES and not self.worker.outstanding():
                return
        left = MESSAGES - len(self.first)
        raise AssertionError(f"{left} messages are not handled: {self.waiting()} {self.trail[-60:]}")

    def assert_order(self):
        for key in range(KEYS):
            numbers = [number for number in self.first if number % KEYS == key]
            assert numbers == sorted(numbers), f"key {key}: {numbers} {self.trail}"


@pytest.mark.parametrize("seed", range(int(os.environ.get("SEEDS", "8"))))
def test_nothing_is_lost_or_out_of_order_however_often_the_server_comes_back_with_older_data(
    own_server, monkeypatch, seed
):
    storm = Storm(own_server, seed, monkeypatch)
    storm.run()
    storm.assert_order()
