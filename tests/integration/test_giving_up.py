"""A lane is given up while its slice dies: what shared memory says is settled before its lease is free."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bus.client import Bus
from bus.errors import BusUnavailable
from bus.format.lane_id import LaneId
from bus.format.state import Failure
from bus.streams.commands import text
from bus.streams.embedded import EmbeddedServer
from tests.integration.views import Clock, Seer
from workers.membership.leases import Leases
from workers.order import SliceOrder

pytestmark = pytest.mark.usefixtures("no_database")

LANE = LaneId("keyed", 0, "g")


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.topic("keyed", partitions=1)
    bus.registry.project(bus.declared.specs().values())
    yield bus
    bus.close()


class Dying:
    """A worker with one lane, in a slice of which two messages are done, one runs, and one is not begun."""

    def __init__(self, bus: Bus) -> None:
        self.bus, self.clock = bus, Clock()
        self.worker = Seer(bus, {"keyed/g"}, self.clock)
        self.keys = bus.keys.partition("keyed", 0)

    def begin(self) -> None:
        """The slice, as it is when its process dies."""
        (order,) = self.worker.scheduler.next_slices(1)
        self.order: SliceOrder = order
        self.bus.client.call("XREADGROUP", "GROUP", "g", "0", "STREAMS", self.keys.stream, ">")
        self.ids = self.pending()
        assert len(self.ids) == 4
        progress, slot = self.worker.progress, order.slot
        progress.begin(slot, os.getpid())
        progress.took_in(slot)
        for id in self.ids[:2]:
            progress.running(slot, 0, id.encode(), 0.0)
            progress.done(slot)
        progress.running(slot, 0, self.ids[2].encode(), 0.0)

    def die(self) -> None:
        """The main loop hears of the death, as `Consumer.slice_ended` does."""
        ended = self.worker.scheduler.ended(self.order.slot, died="worker lost")
        if ended.free:
            self.worker.membership.release()

    def errands(self) -> None:
        """What the thread does between two looks."""
        membership = self.worker.membership
        while not membership._errands.empty():
            if (work := membership._errands.get()) is not None:
                membership._attempt(work)

    def look(self) -> None:
        self.clock.now += 3
        self.worker.membership.look()
        assert self.worker.membership._attempt(self.worker.membership._look)
        self.errands()

    def assert_settled(self) -> None:
        """Nobody handles again what is done, and what ran has had an attempt."""
        assert self.pending() == self.ids[2:]
        raw = self.bus.client.call("HGET", self.keys.state("g"), self.ids[2])
        assert raw is not None
        assert Failure.load(raw).attempts == 1

    def lease(self) -> str:
        return text(self.bus.client.call("GET", self.keys.lease("g", "0")))

    def pending(self) -> list[str]:
        return [text(row[0]) for row in self.bus.client.call("XPENDING", self.keys.stream, "g", "-", "+", 10)]


@pytest.fixture
def dying(bus: Bus) -> Dying:
    for number in range(4):
        bus.publish("keyed", number, key="a")
    dying = Dying(bus)
    dying.look()
    dying.look()
    dying.begin()
    return dying


def after(monkeypatch: pytest.MonkeyPatch, dying: Dying, step: str) -> None:
    """Its process dies after this step of the next look."""
    real: Callable[..., None] = getattr(dying.worker.membership, step)

    def and_then(*args: Any) -> None:
        real(*args)
        monkeypatch.setattr(dying.worker.membership, step, real)
        dying.die()

    monkeypatch.setattr(dying.worker.membership, step, and_then)


def unwanted(dying: Dying, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the next look on no lane should be ours any more."""
    update = dying.worker.membership._division.update

    def nothing(view: Any) -> None:
        update(view)
        dying.worker.membership._division.assigned = set()

    monkeypatch.setattr(dying.worker.membership._division, "update", nothing)


@pytest.mark.both_servers
@pytest.mark.parametrize("step", ["_bury", "_drop_lost", "_give_up", "_free_strays"])
def test_a_slice_that_dies_while_its_lane_is_given_up_has_its_outcomes_settled_before_the_lease_is_free(
    dying: Dying, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    # Given a lane that we hold, and that should be somebody else's from now on
    # When its process dies at this step of the look that finds it
    unwanted(dying, monkeypatch)
    after(monkeypatch, dying, step)
    dying.look()
    dying.look()
    # Then
    assert dying.lease().startswith("free:")
    dying.assert_settled()


def test_a_lane_that_is_wanted_again_as_its_slice_dies_is_not_taken_anew_before_its_outcomes_are_settled(
    dying: Dying, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a lane that leaves when its slice ends
    dying.worker.scheduler.leave(LANE)
    # When its process dies in the look that finds that it should stay after all
    after(monkeypatch, dying, "_drop_lost")
    dying.look()
    dying.look()
    # Then it is ours, and nothing is handled again
    assert dying.lease().startswith(dying.worker.name)
    assert dying.worker.scheduler.owned() == {LANE: dying.lease()}
    dying.assert_settled()


def test_a_lane_is_not_free_while_redis_is_away_as_its_outcomes_are_to_be_settled(
    dying: Dying, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a lane that leaves as its slice dies, while Redis is away
    dying.worker.scheduler.leave(LANE)
    real = Leases.give_back

    def away(*_: Any) -> None:
        raise BusUnavailable("away")

    monkeypatch.setattr(Leases, "give_back", away)
    dying.die()
    dying.errands()
    # When it is back, and the lane should be somebody else's
    monkeypatch.setattr(Leases, "give_back", real)
    unwanted(dying, monkeypatch)
    dying.look()
    # Then
    assert dying.lease().startswith("free:")
    dying.assert_settled()
