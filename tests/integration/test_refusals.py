"""A worker's user who may not do all: what is refused is said once, and holds up nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from bus.client import Bus
from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.turn import Turns
from bus.errors import Forbidden
from bus.format.keys import PartitionKeys, pad_id
from bus.format.lane_id import LaneId
from bus.streams.commands import text
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from tests.acls import PASSWORD, as_user, user_url
from tests.integration.views import Clock, Seer
from workers.membership.leases import Leases
from workers.membership.sweep import SCAN_SECONDS
from workers.order import Fallen
from workers.scheduling.owned import OwnedLane

pytestmark = [pytest.mark.both_servers, pytest.mark.usefixtures("no_database")]

ALL = ("on", f">{PASSWORD}", "~*", "&*", "+@all")
TOPIC, GROUP = "orders", "stock"


@pytest.fixture
def bus(own_server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    """Somebody who may do everything."""
    bus = Bus(own_server.url, prefix=prefix)
    bus.topic(TOPIC, partitions=2)
    bus.registry.project(bus.declared.specs().values())
    bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP)])
    yield bus
    bus.close()


def without(bus: Bus, server: EmbeddedServer, *refused: str) -> Bus:
    """The same bus for a user who may do all but these commands."""
    return as_user(server, "worker", [*ALL, *refused], prefix=bus.settings.prefix)


# ---------------------------------------------------------------------- the walk through all keys


def test_a_walk_that_is_refused_is_said_and_goes_on_once_it_is_allowed(
    bus: Bus, own_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a lease that only the walk finds, and a worker that may not SCAN
    stray = bus.keys.partition(TOPIC, 0).lease("deleted", "0")
    bus.client.call("SET", stray, "free:dead-1-7")
    mine, clock = without(bus, own_server, "-scan"), Clock()
    worker = Seer(mine, {f"{TOPIC}/{GROUP}"}, clock)
    # When it leads for some minutes
    with caplog.at_level(logging.WARNING, "jitney.workers"):
        for _ in range(60):
            clock.now += 3
            worker.look()
    # Then it serves its lanes, and says at most once a minute what it leaves
    assert len(worker.scheduler.owned()) == 2
    said = [each.getMessage() for each in caplog.records if "Leases that nobody needs" in each.getMessage()]
    assert 1 <= len(said) <= 4
    assert "scan" in said[0].lower()
    assert bus.client.call("GET", stray) is not None
    # And goes on by itself
    user_url(own_server, "worker", ALL)
    for _ in range(int(3 * SCAN_SECONDS)):
        clock.now += 3
        worker.look()
    assert bus.client.call("GET", stray) is None
    worker.leave()
    mine.close()


# ---------------------------------------------------------------------- giving back


@pytest.mark.parametrize("refused", ["hscan", "zscan", "zcard", "time", "xack", "zrem", "xpending"])
def test_a_lane_is_given_back_though_what_was_handled_there_cannot_be_settled(
    bus: Bus, own_server: EmbeddedServer, refused: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given two lanes, one of which a slice has left with a message that is done
    mine = without(bus, own_server, f"-{refused}")
    leases, lanes = Leases(mine, "me"), []
    for partition in range(2):
        keys = bus.keys.partition(TOPIC, partition)
        lanes.append(OwnedLane(LaneState(LaneId(TOPIC, partition, GROUP), leases.new_value(), "key")))
        bus.client.call("SET", keys.lease(GROUP, "0"), lanes[-1].lease)
    keys = bus.keys.partition(TOPIC, 0)
    id = bus.client.call("XADD", keys.stream, "*", "v", "1").decode()
    bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "STREAMS", keys.stream, ">")
    lanes[0].fallen = Fallen((id,), (), None, False, "worker lost")
    # When both are given back by a user who may not do one thing that settling takes
    with caplog.at_level(logging.WARNING, "jitney.workers"):
        leases.give_back(lanes)
    mine.close()
    # Then both are free; it is settled, or said that it is not
    values = [
        bus.client.call("GET", bus.keys.partition(TOPIC, number).lease(GROUP, "0")) for number in range(2)
    ]
    said = " ".join(each.getMessage() for each in caplog.records)
    assert [value[:5] for value in values] == [b"free:"] * 2
    settled = not bus.client.call("XPENDING", keys.stream, GROUP)[0]
    assert settled or refused in said.lower() or "can't run this command" in said  # Redis 7.0 names none


@pytest.mark.parametrize("name", ["retry", "held", "state", "dead", "stream"])
def test_a_lane_is_given_back_though_a_key_there_is_of_another_type(
    bus: Bus, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys, leases = bus.keys.partition(TOPIC, 0), Leases(bus, "me")
    lane = OwnedLane(LaneState(LaneId(TOPIC, 0, GROUP), leases.new_value(), "key"))
    bus.client.call("SET", keys.lease(GROUP, "0"), lane.lease)
    lane.fallen = Fallen(("1-1",), (), None, False, "worker lost")
    foreign = keys.stream if name == "stream" else getattr(keys, name)(GROUP)
    bus.client.call("DEL", foreign)
    bus.client.call("SET", foreign, "somebody else's")
    with caplog.at_level(logging.WARNING, "jitney.workers"):
        leases.give_back([lane])
    assert bus.client.call("GET", keys.lease(GROUP, "0"))[:5] == b"free:"
    assert keys.lease(GROUP, "0") in caplog.text


# ---------------------------------------------------------------------- putting right


class Waiting:
    """A partition where two messages are held behind nothing: one with a key, and one that has none."""

    def __init__(self, bus: Bus, first: str) -> None:
        self.keys: PartitionKeys = bus.keys.partition(TOPIC, 0)
        ms = first.partition("-")[0]
        self.ids = [f"{ms}-1", f"{ms}-2"]
        for id, more in zip(self.ids, (["k", "a"], []), strict=True):
            bus.client.call("XADD", self.keys.stream, id, "v", "1", *more)
            bus.client.call("ZADD", self.keys.held(GROUP), 0, f"no hash:{pad_id(id)}")
        bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "STREAMS", self.keys.stream, ">")
        # Not pending either: else they would come as left-overs all the same
        bus.client.call("XACK", self.keys.stream, GROUP, *self.ids)
        bus.client.call("SET", self.keys.lease(GROUP, "0"), "me:1")

    def opened(self, bus: Bus) -> Turns:
        lane = Lane(LaneState(LaneId(TOPIC, 0, GROUP), "me:1", "key"), self.keys)
        turns = Turns(bus.endpoint, [lane], held_limit=100, dead_limit=100)
        turns.open()
        return turns


def take_all(turns: Turns) -> set[str]:
    found = set()
    for _ in range(6):
        for lane, messages in turns.take(100):
            for message in messages:
                found.add(message.id)
                lane.done(message)
    turns.settle()
    if (link := turns.close()) is not None:
        link.close()
    return found


@pytest.mark.parametrize("first", ["1-0", "9000000000000-0"], ids=["", "the clock is behind"])
def test_what_is_held_behind_nothing_comes_also_where_ids_are_ahead_of_the_clock(
    bus: Bus, first: str
) -> None:
    waiting = Waiting(bus, first)
    assert take_all(waiting.opened(bus)) == set(waiting.ids)
    assert bus.client.call("EXISTS", waiting.keys.held(GROUP), waiting.keys.retry(GROUP)) == 0


def test_putting_right_loses_nothing_where_the_time_may_not_be_asked_for(
    bus: Bus, own_server: EmbeddedServer
) -> None:
    # Given a user who may not ask for the time, which retries need
    waiting = Waiting(bus, "1-0")
    mine = without(bus, own_server, "-time")
    # When a slice puts the lane right and goes as far as it may
    with pytest.raises(Forbidden):
        take_all(waiting.opened(mine))
    mine.close()
    # Then whoever may do all finds both messages
    retrying = {text(id) for id in bus.client.call("ZRANGE", waiting.keys.retry(GROUP), 0, -1)}
    held = {text(each)[-41:] for each in bus.client.call("ZRANGE", waiting.keys.held(GROUP), 0, -1)}
    assert all(id in retrying or pad_id(id) in held for id in waiting.ids)
    bus.client.call("SET", waiting.keys.lease(GROUP, "0"), "me:1")
    assert take_all(waiting.opened(bus)) == set(waiting.ids)
