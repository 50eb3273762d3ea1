"""What a worker does again and again while nothing happens does not grow with its lanes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bus.client import Bus
from bus.format.lane_id import LaneId
from bus.streams.wire import Link
from bus.topics.registry import GroupSpec
from bus.values import TopicSpec
from workers.membership.leases import Leases
from workers.membership.orderings import Orderings
from workers.progress import Progress
from workers.scheduling.scheduler import Scheduler

TOPIC, GROUP, PARTITIONS = "orders", "stock", 64


class World:
    def __init__(self, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bus = bus
        bus.registry.project([TopicSpec(name=TOPIC, partitions=PARTITIONS)])
        self.declare()
        self.scheduler = Scheduler(Progress(2), 2, "nonce")
        self.orderings = Orderings(bus, Leases(bus, "me"), self.scheduler)
        self.walks = 0
        self.commands: list[int] = []
        send = Link.send

        def counted(link: Link, packed: bytes, replies: int) -> None:
            self.commands.append(replies)
            send(link, packed, replies)

        monkeypatch.setattr(Link, "send", counted)

    def declare(self, ordering: Any = "key") -> None:
        self.bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP, ordering=ordering)])

    def look(self) -> list[int]:
        """The commands of one look, by round trip."""
        tables = self.bus.registry.tables()
        self.commands.clear()
        self.orderings.refresh(tables, lambda: self._walk(tables))
        self.orderings.change()
        return list(self.commands)

    def _walk(self, tables: Any) -> list[LaneId]:
        self.walks += 1
        return list(tables.homes())


@pytest.fixture
def world(server: Any, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    bus = Bus(server.url, prefix=prefix)
    yield World(bus, monkeypatch)
    bus.close()


def test_orderings_are_walked_through_once_and_asked_for_again_only_where_a_lane_was_lost(
    world: World,
) -> None:
    assert world.look() == [PARTITIONS]
    # Nothing changes
    assert [world.look() for _ in range(3)] == [[], [], []]
    assert world.walks == 1
    # One lane is lost
    lane = LaneId(TOPIC, 7, GROUP)
    world.orderings.drop(lane)
    assert world.orderings.of(lane) is None
    assert world.look() == [1]
    assert world.orderings.of(lane) == "key"
    assert world.look() == []
    assert world.walks == 1


def test_another_ordering_is_asked_for_at_each_look_until_it_is_in_effect(world: World) -> None:
    world.look()
    world.declare("partition")
    assert world.look() == [PARTITIONS]
    assert world.look() == [PARTITIONS]  # none is ours, so we change nothing
    for number in range(PARTITIONS):
        state = world.bus.keys.partition(TOPIC, number).state(GROUP)
        world.bus.client.call("HSET", state, "ordering", "partition")
    world.look()
    assert world.look() == []
    assert world.orderings.of(LaneId(TOPIC, 0, GROUP)) == "partition"
    assert world.walks == 2


def test_a_worker_without_lanes_that_wait_looks_at_none_of_them(world: World) -> None:
    """Each tenth of a second: whether a lane waits for a slot, or was taken back."""
    scheduler = world.scheduler
    for number in range(PARTITIONS):
        scheduler.add(LaneId(TOPIC, number, GROUP), f"me:{number}", "key", position="0-0")
    walked: list[int] = []

    class Walked(dict[Any, Any]):
        def values(self) -> Any:
            walked.append(len(self))
            return super().values()

    scheduler._lanes = scheduler._ready._lanes = Walked(scheduler._lanes)
    assert scheduler.taken_back() == []
    scheduler.share_out()
    assert scheduler.lingering() == []
    assert scheduler.waiting() == {}
    assert scheduler.next_slices(2) == []
    assert walked == []
    # And one that has work is seen
    scheduler.wake([LaneId(TOPIC, 3, GROUP)])
    assert list(scheduler.waiting()) == [LaneId(TOPIC, 3, GROUP)]
    assert len(scheduler.next_slices(2)) == 1
