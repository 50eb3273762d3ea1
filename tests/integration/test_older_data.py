"""A server that comes back with older data: whatever is older there, the rest is put right around it.

A run with failing keys is recorded key by key. Then one key of the group's state, or all of them, is set back
to what it was at an earlier moment, or removed, as a replica that lags or a half-written dump would have it.
Then the same worker goes on after a failover, or another one takes over.
"""

from __future__ import annotations

import itertools

import pytest

from bus.errors import Reject, Retry
from bus.format.keys import pad_id
from bus.format.partition import key_hash
from bus.format.state import Failure
from bus.streams import history
from tests.integration.test_lane import GROUP, Worker, around, assert_in_order
from tests.waiting import wait_until

__all__ = ["around"]

KEYS = ("stream", "retry", "held", "state", "mark", "dead", "lease")
#: Numbers that fail until the server has come back; of each key a first, and one that comes later.
FAILING = {0, 1, 7, 12, 20}
REJECTED = {4, 13}


class Run:
    """One worker on one partition, and what its keys were at each moment."""

    def __init__(self, server, ordering):
        self.failing = True
        self.handled, self.given_up, self.starts = [], set(), 1
        self.worker = Worker(server, self.handle, ordering=ordering, attempts=1000)
        self.moments = []
        self.acquire()

    def acquire(self):
        names = ("0", "me.0") if self.worker.ordering == "none" else ("0",)
        self.worker.acquire(*(self.worker.lane(0, name) for name in names))

    def handle(self, message):
        if message.value in REJECTED:
            self.given_up.add(message.value)
            raise Reject("never")
        if self.failing and message.value in FAILING:
            raise Retry(delay=0.05)
        self.handled.append(message)

    def names(self):
        keys = self.worker.keys()
        return {
            "stream": keys.stream, "retry": keys.retry(GROUP), "held": keys.held(GROUP),
            "state": keys.state(GROUP), "mark": keys.mark(GROUP), "dead": keys.dead(GROUP),
            "lease": keys.lease(GROUP, "0"),
        }  # fmt: skip

    def note(self):
        call = self.worker.bus.client.call
        self.moments.append({what: call("DUMP", name) for what, name in self.names().items()})

    def begin(self):
        """Publish and consume in turns, with everything in every state between."""
        self.note()
        for first in (0, 10, 20):
            self.worker.publish(10, keys=3, first=first)
            self.note()
            for process in (0, 0, 1):
                self.worker.wake()
                self.worker.step(process)
                self.note()
        retry, held = self.names()["retry"], self.names()["held"]
        assert self.worker.bus.client.call("ZCARD", retry) > 0
        assert self.worker.ordering == "none" or self.worker.bus.client.call("ZCARD", held) > 0

    def put(self, what, dump):
        call, name = self.worker.bus.client.call, self.names()[what]
        call("DEL", name)
        if dump is not None:
            call("RESTORE", name, 0, dump)

    def fail_over(self, monkeypatch):
        """As seen from the worker: all connections break, and new ones lead to another process."""
        monkeypatch.setattr(history, "ask", lambda link: 12345)
        for runtime in self.worker.processes:
            if link := runtime.take_link():
                link.close()
                runtime.leave_link(link)

    def go_on(self):
        """Until all is settled; the keeper's part of it is played here."""
        self.failing = False
        wait_until(self.is_over, 10, "the end of it", 0.005)

    def is_over(self):
        worker = self.worker
        if not worker.scheduler.owned():
            self.acquire()
        worker.wake()
        while worker.step(self.starts % 2):
            self.starts += 1
            if worker.gone:
                worker.repair()
        return self.group_is_there() and not worker.outstanding() and not self.waiting()

    def waiting(self):
        call, names = self.worker.bus.client.call, self.names()
        return call("ZCARD", names["retry"]) + call("ZCARD", names["held"])

    def group_is_there(self):
        """Also where a stream was lost that nobody has missed yet."""
        if self.worker.bus.client.call("EXISTS", self.names()["stream"]):
            return True
        self.worker.repair()
        return False

    def assert_all_is_well(self):
        worker = self.worker
        call, names = worker.bus.client.call, self.names()
        there = {int(entry[1][1]) for entry in call("XRANGE", names["stream"], "-", "+")}
        assert there <= {message.value for message in self.handled} | self.given_up
        if worker.ordering != "none":
            assert_in_order(self.handled, worker.ordering)
        assert [field for field in call("HKEYS", names["state"]) if field[:1].isdigit()] == []


def ages(server, ordering, what):
    """Moments at which that key (or any) was not what it was at a moment before; and None: it is gone."""
    run = Run(server, ordering)
    run.begin()
    seen, found = set(), []
    for age, moment in enumerate(run.moments):
        dump = tuple(moment.values()) if what == "all" else moment[what]
        if dump not in seen:
            found.append(age)
        seen.add(dump)
    run.worker.close()
    return [*found, None]


@pytest.mark.both_servers
@pytest.mark.parametrize("ordering", ["key", "partition", "none"])
@pytest.mark.parametrize("what", [*KEYS, "all"])
@pytest.mark.parametrize("then", ["failover", "takeover"])
def test_whatever_part_of_a_group_is_older_nothing_is_lost_held_for_ever_or_out_of_order(
    server, monkeypatch, then, what, ordering
):
    for age in ages(server, ordering, what):
        run = Run(server, ordering)
        run.begin()
        for each in KEYS if what == "all" else [what]:
            run.put(each, None if age is None else run.moments[age][each])
        try:
            with monkeypatch.context() as patch:
                run.fail_over(patch) if then == "failover" else run.acquire()
                run.go_on()
            run.assert_all_is_well()
        except AssertionError as error:
            raise AssertionError(f"with {what} of moment {age}: {error}") from error
        run.worker.close()


@pytest.mark.both_servers
@pytest.mark.parametrize("ordering", ["key", "partition"])
def test_messages_of_a_key_come_in_order_however_each_of_them_waits(server, ordering):
    for waits in itertools.product(("retry", "held", "in hand"), repeat=3):
        # given three messages of a key that were given out, each of which may fail, be held back, or neither
        run = Run(server, ordering)
        run.failing, worker = False, run.worker
        worker.publish(8, keys=1)
        call, names = worker.bus.client.call, run.names()
        call("XREADGROUP", "GROUP", GROUP, "0", "COUNT", 3, "STREAMS", names["stream"], ">")
        hash_ = key_hash(ordering, b"k0")
        for (raw, *_), way in zip(call("XPENDING", names["stream"], GROUP, "-", "+", 3), waits, strict=True):
            id = raw.decode()
            if way == "held":
                call("ZADD", names["held"], 0, f"{hash_}:{pad_id(id)}")
            elif way == "retry":
                call("ZADD", names["retry"], 0, id)
                call("HSET", names["state"], id, Failure(hash_, attempts=1).dump())
        # when a worker goes on with that
        run.acquire()
        run.go_on()
        # then each is handled once, in order
        assert [message.value for message in run.handled] == [0, 1, 2, 3, 5, 6, 7], waits
        run.assert_all_is_well()
        worker.close()
