"""However much waits in a lane: it is read in pages, all of it is handled, and order stays."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import orjson
import pytest

from bus.client import Bus
from bus.consuming import waiting
from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.turn import Turns
from bus.format.keys import pad_id
from bus.format.lane_id import LaneId
from bus.format.partition import key_hash
from bus.streams import commands
from bus.streams.connect import Endpoint
from bus.streams.wire import Link
from bus.topics.registry import GroupSpec
from bus.values import TopicSpec

pytestmark = pytest.mark.both_servers
TOPIC, GROUP, LEASE = "orders", "stock", "worker:1"
HOT = b"hot"


class MeasuringEndpoint(Endpoint):
    """Notes the greatest number of parts in one reply."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        endpoint = self
        self.greatest = self.trips = 0

        class Measuring(Link):
            __slots__ = ()

            def pipe(self, commands: Any) -> list[Any]:
                replies: list[Any] = super().pipe(commands)
                endpoint.greatest = max([endpoint.greatest, *map(_parts, replies)])
                endpoint.trips += 1
                return replies

        self._measuring = Measuring

    def connect(self, *, timeout: float | None = None) -> Link:
        link = super().connect(timeout=timeout)
        link.__class__ = self._measuring
        return link


def _parts(reply: Any) -> int:
    return sum(map(_parts, reply)) if isinstance(reply, list) else 1


@pytest.fixture
def bus(server: Any, prefix: str) -> Any:
    found = Bus(server.url, prefix=prefix)
    found.registry.project([TopicSpec(name=TOPIC)])
    found.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP)])
    yield found
    found.close()


def pipe(bus: Bus, asked: list[Any]) -> None:
    for start in range(0, len(asked), 10_000):
        for reply in bus.client.pipe(asked[start : start + 10_000]):
            assert not isinstance(reply, Exception), reply


def let_wait(bus: Bus, heads: int, held: int) -> dict[bytes, list[str]]:
    """So many failing keys, of which one has so many messages that are held back; all retries are due.

    Returns key → ids, in order.
    """
    keys = bus.keys.partition(TOPIC, 0)
    ids: dict[bytes, list[str]] = defaultdict(list)
    for number in range(1, heads + held + 1):
        key = HOT if number == 1 or number > heads else b"k%d" % number
        ids[key].append(f"{number}-0")
    pipe(bus, [("XADD", keys.stream, id, "v", "1", "k", key) for key, each in ids.items() for id in each[:1]])
    pipe(bus, [("XADD", keys.stream, id, "v", "1", "k", HOT) for id in ids[HOT][1:]])
    for _ in range(0, heads + held, 10_000):
        bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "COUNT", 10_000, "STREAMS", keys.stream, ">")
    for key, each in ids.items():
        failure = orjson.dumps({"k": key_hash("key", key), "a": 1, "e": "x" * 200})
        ids_failed = each[:1]
        pipe(bus, [("HSET", keys.state(GROUP), id, failure) for id in ids_failed])
        pipe(bus, [("ZADD", keys.retry(GROUP), 1, id) for id in ids_failed])
    hot = key_hash("key", HOT)
    pipe(bus, [("ZADD", keys.held(GROUP), 0, f"{hot}:{pad_id(id)}") for id in ids[HOT][1:]])
    return ids


def opened(bus: Bus, endpoint: Endpoint, *, recover: bool) -> tuple[Turns, Lane]:
    keys = bus.keys.partition(TOPIC, 0)
    bus.client.call("SET", keys.lease(GROUP, "0"), LEASE)
    lane = Lane(LaneState(LaneId(TOPIC, 0, GROUP), LEASE, "key"), keys)
    if not recover:
        lane.end_recovery()
    turns = Turns(endpoint, [lane], held_limit=10_000, dead_limit=10_000)
    turns.open()
    return turns, lane


def shut(turns: Turns) -> None:
    if link := turns.close():
        link.close()


def test_what_waits_in_a_lane_is_read_in_pages(server: Any, bus: Bus) -> None:
    let_wait(bus, 3_000, 2_000)
    endpoint = MeasuringEndpoint(server.url)
    turns, lane = opened(bus, endpoint, recover=False)
    shut(turns)
    # All is known
    assert (lane.retrying, lane.held, len(lane.failures)) == (3_000, 2_000, 3_000)
    assert sum(map(len, lane.failing.values())) == 3_000
    assert lane.next_due == 1
    # A page is some records more than asked for, as the server's hash tables are laid out
    assert endpoint.greatest < 2 * 3 * waiting.RECORDS_A_COMMAND


def test_where_little_waits_that_costs_no_round_trip_of_its_own(server: Any, bus: Bus) -> None:
    trips = []
    bus.client.call("SCRIPT", "LOAD", commands.script("mend").text)
    for waiting_there in (0, 50):
        let_wait(bus, waiting_there, waiting_there)
        endpoint = MeasuringEndpoint(server.url)
        turns, lane = opened(bus, endpoint, recover=False)
        shut(turns)
        assert lane.retrying == waiting_there
        trips.append(endpoint.trips)
    # The second looks whether what waits fits together: see bus.consuming.mending
    assert trips == [1, 2]


def test_a_hundred_thousand_waiting_messages_are_handled_once_and_in_order(server: Any, bus: Bus) -> None:
    heads = held = 50_000
    ids = let_wait(bus, heads, held)
    endpoint = MeasuringEndpoint(server.url)
    # Also by somebody who takes the lane over in the middle
    handled: list[str] = []
    turns, lane = opened(bus, endpoint, recover=True)
    keys = bus.keys.partition(TOPIC, 0)
    while bus.client.call("XPENDING", keys.stream, GROUP)[0]:
        if len(handled) > heads + held // 2 and turns.lanes[0] is lane:
            turns.settle()
            shut(turns)
            turns, _ = opened(bus, endpoint, recover=True)
        for each, messages in turns.take(500):
            for message in messages:
                if each.must_wait(message):
                    each.hold(message)
                else:
                    handled.append(message.id)
                    each.done(message)
    turns.settle()
    shut(turns)
    assert len(handled) == heads + held
    assert len(set(handled)) == heads + held
    hot = set(ids[HOT])
    assert [id for id in handled if id in hot] == ids[HOT]
    assert endpoint.greatest < 2 * 3 * waiting.RECORDS_A_COMMAND


def test_left_overs_are_looked_up_a_few_at_a_time(bus: Bus) -> None:
    keys = bus.keys.partition(TOPIC, 0)
    pipe(bus, [("XADD", keys.stream, f"{number}-0", "v", "1") for number in range(1, 1_001)])
    bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "COUNT", 1_000, "STREAMS", keys.stream, ">")
    bus.client.call("SET", keys.lease(GROUP, "0"), LEASE)
    own = [keys.stream, keys.lease(GROUP, "0"), keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP)]
    found, at = [], b"-"
    while at:
        _, entries, at = commands.run(bus.client, "recover", own, [LEASE, GROUP, "0", at, 500, "key"])
        assert len(entries) <= 150
        found += [entry[0].decode() for entry in entries]
    assert found == [f"{number}-0" for number in range(1, 1_001)]
