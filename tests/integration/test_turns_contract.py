"""What a slice relies on in its turns: in the real ones, and in those that `test_handling.py` makes up."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from bus.client import Bus
from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.turn import Turns
from bus.errors import BusUnavailable, StaleLease
from bus.format.lane_id import LaneId
from bus.streams.commands import fields_of
from bus.streams.connect import Endpoint
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.values import Message, TopicSpec
from tests.unit import test_handling

TOPIC, GROUP = "orders", "g"
KEYS: list[list[str | None]] = [["a", "b", "c", "b"], ["a"]]
"""Of the messages 1-1, 1-2, … of two partitions."""

Settled = set[tuple[str, int, str]]
"""(what became of it, partition, id)"""


class Scene(Protocol):
    """Two lanes with messages in hand, and their turns."""

    turns: Any
    lanes: list[Lane]
    in_hand: list[list[Message]]
    now: float
    """What the clock of the turns shows."""

    def steal(self, partition: int) -> None:
        """The lease is another's from now on."""

    def cut(self) -> None:
        """The connection is broken, until it is made anew."""

    def settled(self) -> Settled: ...


class MadeUp:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._world = test_handling.World(monkeypatch, lanes=2)
        self.turns, self.lanes = self._world.turns, self._world.lanes
        self.in_hand = [messages for _, messages in self._world.fetched(KEYS)]

    @property
    def now(self) -> float:
        return self._world.now

    @now.setter
    def now(self, seconds: float) -> None:
        self._world.now = seconds

    def steal(self, partition: int) -> None:
        self.turns.stolen.append(self.lanes[partition])

    def cut(self) -> None:
        self.turns.cut = True

    def settled(self) -> Settled:
        return set(self.turns.settled)


class Real:
    def __init__(self, server: EmbeddedServer) -> None:
        self.now = 1000.0
        self._bus = Bus(server.url, prefix=f"t{uuid.uuid4().hex[:10]}")
        self._bus.registry.project([TopicSpec(name=TOPIC, partitions=2)])
        self._bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP)])
        self._keys = [self._bus.keys.partition(TOPIC, number) for number in range(2)]
        for keys, of_partition in zip(self._keys, KEYS, strict=True):
            self._bus.client.call("SET", keys.lease(GROUP, "0"), "me")
            for number, key in enumerate(of_partition, 1):
                fields = test_handling.entry(key)
                self._bus.client.call("XADD", keys.stream, f"1-{number}", *fields)
        self.lanes = [
            Lane(LaneState(LaneId(TOPIC, number, GROUP), "me", "key"), keys)
            for number, keys in enumerate(self._keys)
        ]
        self.turns = Turns(
            Endpoint(server.url), self.lanes, held_limit=100, dead_limit=100, clock=lambda: self.now
        )
        self.turns.open()
        taken: list[list[Message]] = [[], []]
        while sum(map(len, taken)) < sum(map(len, KEYS)):
            for lane, messages in self.turns.take(100):
                taken[lane.id.partition] += messages
        self.in_hand = taken

    def steal(self, partition: int) -> None:
        self._bus.client.call("SET", self._keys[partition].lease(GROUP, "0"), "another")

    def cut(self) -> None:
        self.turns.need_link().close()

    def settled(self) -> Settled:
        found: Settled = set()
        for partition, keys in enumerate(self._keys):
            call = self._bus.client.call
            retry = [id.decode() for id in call("ZRANGE", keys.retry(GROUP), 0, -1)]
            held = [_unpadded(place) for place in call("ZRANGE", keys.held(GROUP), 0, -1)]
            dead = [
                fields_of(entry[1])["id"].decode() for entry in call("XRANGE", keys.dead(GROUP), "-", "+")
            ]
            pending = {entry[0].decode() for entry in call("XPENDING", keys.stream, GROUP, "-", "+", 100)}
            ids = [message.id for message in self.in_hand[partition]]
            assert {*retry, *held} <= pending
            done = [id for id in ids if id not in (*pending, *dead)]
            for what, of_kind in (("done", done), ("retry", retry), ("held", held), ("dead", dead)):
                found |= {(what, partition, id) for id in of_kind}
        return found

    def close(self) -> None:
        if link := self.turns.close():
            link.close()
        self._bus.close()


def _unpadded(place: bytes) -> str:
    """The id of an entry of the held zset, `<hash>:<padded id>`."""
    return "-".join(str(int(part)) for part in place.decode().rpartition(":")[2].split("-"))


@pytest.fixture(params=["made up", "real"])
def scene(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, server: EmbeddedServer
) -> Iterator[Scene]:
    if request.param == "made up":
        yield MadeUp(monkeypatch)
        return
    real = Real(server)
    yield real
    real.close()


def finish(scene: Scene, partition: int = 0) -> None:
    """The first message of a lane is done."""
    scene.lanes[partition].done(scene.in_hand[partition][0])


def test_what_is_kept_is_settled_as_what_it_came_to_be(scene: Scene) -> None:
    lane, (done, failed, rejected, behind) = scene.lanes[0], scene.in_hand[0]
    lane.done(done)
    lane.retry(failed, 60, "no", scene.turns.server_now())
    lane.dead(rejected, "rejected", "never", scene.turns.server_now())
    assert lane.must_wait(behind)
    lane.hold(behind)
    assert scene.settled() == set()

    scene.turns.settle()

    expected = {("done", 0, "1-1"), ("retry", 0, "1-2"), ("dead", 0, "1-3"), ("held", 0, "1-4")}
    assert scene.settled() == expected
    # and it is kept no more
    assert not lane.acks
    assert not lane.outcomes
    scene.turns.settle()
    assert scene.settled() == expected


def test_where_nothing_is_kept_nothing_is_asked(scene: Scene) -> None:
    scene.cut()
    scene.turns.settle()


def test_what_was_kept_is_still_kept_when_the_link_breaks_and_is_settled_when_it_is_made_anew(
    scene: Scene,
) -> None:
    finish(scene)
    scene.cut()
    with pytest.raises(BusUnavailable):
        scene.turns.settle()
    assert scene.settled() == set()

    scene.turns.reopen()

    assert scene.settled() == {("done", 0, "1-1")}
    # What else was in hand is looked for in the pending list
    assert all(lane.recovering for lane in scene.lanes)


def test_in_a_lane_that_is_another_s_nothing_is_settled_and_the_other_lanes_go_on(scene: Scene) -> None:
    finish(scene, 0)
    finish(scene, 1)
    scene.steal(0)

    scene.turns.settle()

    assert scene.settled() == {("done", 1, "1-1")}
    assert [lane.lost for lane in scene.lanes] == [True, False]
    assert scene.turns.lanes == [scene.lanes[1]]


def test_without_a_lane_that_is_left_it_is_said_that_the_leases_are_lost(scene: Scene) -> None:
    finish(scene)
    scene.steal(0)
    scene.steal(1)
    with pytest.raises(StaleLease):
        scene.turns.settle()
    assert scene.settled() == set()
    with pytest.raises(StaleLease):
        scene.turns.prove()


def test_a_lease_is_ours_until_another_has_it_or_nobody_can_be_asked(scene: Scene) -> None:
    one, other = scene.lanes
    scene.now += 1
    assert scene.turns.is_ours(one)
    assert scene.turns.proved == scene.now
    scene.steal(0)
    assert not scene.turns.is_ours(one)
    assert scene.turns.is_ours(other)
    scene.cut()
    assert not scene.turns.is_ours(other)


def test_a_proof_is_as_old_as_the_question(scene: Scene) -> None:
    for ask in (scene.turns.prove, scene.turns.settle):
        finish(scene)
        scene.now += 1
        ask()
        assert scene.turns.proved == scene.now
