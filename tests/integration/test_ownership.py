"""What several workers with different groups and different code make of the same Redis, look by look."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from admin_ui.data import verdicts
from bus import doctor, observe
from bus.client import Bus
from bus.errors import BusFull
from bus.format.lane_id import LaneId
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from tests.integration.views import Clock, Seer
from workers.membership.unheld import UNHELD_SECONDS

pytestmark = pytest.mark.usefixtures("no_database")

#: topic → partitions; "late" is not there at first.
TOPICS = {"t0": 1, "t1": 1, "t2": 3, "loose": 2}
SERVED = ["t0/g0", "t1/g1", "t1/g2", "t2/g0", "t2/g3", "loose/l", "late/g"]
LOOSE = {"loose/l"}

_prefixes = (f"own{number}" for number in itertools.count())


@contextmanager
def new_bus(server: EmbeddedServer) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=next(_prefixes))
    for topic, partitions in TOPICS.items():
        bus.topic(topic, partitions=partitions)
    bus.registry.project(bus.declared.specs().values())
    # Nobody serves this one.
    bus.registry.declare_groups([GroupSpec(topic="t2", name="nobodys")])
    try:
        yield bus
    finally:
        bus.close()


@pytest.fixture
def bus(server: EmbeddedServer) -> Iterator[Bus]:
    with new_bus(server) as bus:
        yield bus


def owners(bus: Bus) -> dict[LaneId, str | None]:
    """Who holds the home of each partition of each declared group, as Redis has it."""
    return {
        LaneId(part.topic, part.partition, part.group): holder(bus, part)
        for group in bus.registry.groups()
        for part in observe.group(bus, group.topic, group.name)[1]
    }


def holder(bus: Bus, part: observe.GroupPartitionSnapshot) -> str | None:
    raw = bus.client.call("GET", bus.keys.partition(part.topic, part.partition).lease(part.group, "0"))
    owner = (raw or b"").decode().rpartition(":")[0]
    return owner if owner not in ("", "free") else None


def settle(workers: list[Seer], clock: Clock) -> None:
    """Look in turn until nobody's lanes change any more."""
    for _ in range(10):
        clock.now += 3
        changes = [worker.look() for worker in workers]
        if not any(changes):
            return
    raise AssertionError("lanes go on moving")


def assert_all_held(bus: Bus, workers: dict[str, tuple[Seer, set[str]]]) -> None:
    for lane, owner in owners(bus).items():
        able = {name for name, (_, serves) in workers.items() if f"{lane.topic}/{lane.group}" in serves}
        assert (owner in able) if able else (owner is None), (lane, owner, able)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sets(st.sampled_from(SERVED)), min_size=1, max_size=4), st.data())
def test_workers_with_different_code_come_to_hold_every_lane_that_one_of_them_serves(
    server: EmbeddedServer, codes: list[set[str]], data: Any
) -> None:
    with new_bus(server) as bus:
        live(bus, codes, data)


def live(bus: Bus, codes: list[set[str]], data: Any) -> None:
    # Given workers of which each knows other handlers, and some a topic that is not there yet
    clock = Clock()
    known: dict[str, tuple[Seer, set[str]]] = {}
    for serves in codes:
        worker = Seer(bus, serves, clock, loose=LOOSE)
        known[worker.name] = (worker, serves)
        # When they come one after the other, the others at work
        if data.draw(st.booleans()):
            settle([each for each, _ in known.values()], clock)
    order = data.draw(st.permutations(range(len(known))))
    workers = [[worker for worker, _ in known.values()][number] for number in order]
    settle(workers, clock)
    # Then every lane has exactly one owner, who serves it
    assert_all_held(bus, known)
    # And so it is when the topic is made, and when one of them leaves
    bus.topic("late", partitions=2)
    bus.registry.project([bus.declared.specs()["late"]])
    for worker in workers:
        worker.membership.look()
    settle(workers, clock)
    assert_all_held(bus, known)
    gone = workers[data.draw(st.integers(0, len(workers) - 1))]
    gone.leave()
    del known[gone.name]
    rest = [worker for worker in workers if worker is not gone]
    settle(rest, clock)
    assert_all_held(bus, known)


def test_workers_of_a_version_that_did_not_say_what_it_serves_get_their_share(bus: Bus) -> None:
    # Given a worker whose record says only the names of its groups, as an older one does
    clock = Clock()
    worker = Seer(bus, {"t1/g1", "t0/g0"}, clock)
    record = {"host": "far", "pid": 1, "boot": "x", "pidns": "x", "start": 1, "started": 0, "groups": ["g1"],
              "processes": 1, "beat": 1}  # fmt: skip
    bus.client.call("HSET", bus.keys.workers, "!older", orjson.dumps(record))
    settle([worker], clock)
    # Then of the groups that both serve one lane is left to it
    assert {lane.group for lane in worker.scheduler.owned()} == {"g0"}


def test_what_is_declared_is_read_again_only_where_something_changed(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that has all that it should have
    clock = Clock()
    worker = Seer(bus, {"t0/g0", "t2/g3"}, clock)
    settle([worker], clock)
    worker.look()
    trips: list[Any] = []
    real = bus.client._with_link
    monkeypatch.setattr(bus.client, "_with_link", lambda work: (trips.append(work), real(work))[1])
    # When it looks a few times more
    for _ in range(3):
        clock.now += 3
        worker.look()
    # Then each look is one script and one MGET; and in fifteen seconds it looks once through a few consumers
    # with one more MGET, and through a page of keys, and reads what is declared
    assert len(trips) <= 3 * 2 + 2 * 2 + 2 + 1


# ---------------------------------------------------------------------- the alarm


@pytest.mark.parametrize("step", ["tables", "change"])
def test_lanes_that_nobody_holds_are_named_by_log_and_doctor_though_every_look_fails(
    bus: Bus, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    # Given a group that is declared, and a worker whose every look fails before it takes a lane, or after
    bus.registry.declare_groups([GroupSpec(topic="t2", name="g3")])
    clock = Clock()
    worker = Seer(bus, {"t2/g3"}, clock)
    keeper = worker.membership

    def fail(*_: object) -> None:
        raise BusFull("Redis is out of memory.")

    monkeypatch.setattr(keeper._served if step == "tables" else keeper._orderings, step, fail)
    monkeypatch.setattr(keeper._leases, "take", lambda swaps: [])
    # When it has tried for more than ten seconds
    for _ in range(6):
        assert not keeper._attempt(keeper._look)
        clock.now += 3
    # Then
    assert [record for record in caplog.records if "Nobody has held" in record.message]
    told = [finding.text for finding in doctor.examine(bus) if finding.level == "error"]
    assert any("t2/1 for g3" in text for text in told), told


def test_what_cannot_be_declared_keeps_no_worker_from_the_groups_that_are_there(
    bus: Bus, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus.registry.declare_groups([GroupSpec(topic="t2", name="g3")])
    clock = Clock()
    worker = Seer(bus, {"t2/g3", "t0/g0"}, clock)

    def fail(*_: object, **__: object) -> None:
        raise BusFull("Redis is out of memory.")

    with monkeypatch.context() as full:
        full.setattr(worker.membership._served._newcomers, "declare", fail)
        settle([worker], clock)
        assert {lane.topic for lane in worker.scheduler.owned()} == {"t2"}
        assert "Groups of this worker cannot be declared now" in caplog.text
    settle([worker], clock)
    assert {lane.topic for lane in worker.scheduler.owned()} == {"t2", "t0"}


@pytest.mark.both_servers
def test_a_lane_that_nobody_takes_for_ten_seconds_is_named_by_log_doctor_and_pages(
    bus: Bus, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that for some reason cannot take one of the lanes that it serves
    clock = Clock()
    worker = Seer(bus, {"t2/g3", "t0/g0"}, clock)
    settle([worker], clock)
    lane = LaneId("t2", 1, "g3")
    assert worker.scheduler.leave(lane)
    worker.membership._departures.give_back()
    take = worker.membership._leases.take
    monkeypatch.setattr(
        worker.membership._leases, "take", lambda swaps: take([each for each in swaps if each.lane != lane])
    )
    caplog.set_level(logging.WARNING)

    def seen() -> tuple[list[str], bool, bool, bool]:
        lines = [record.message for record in caplog.records if "Nobody has held" in record.message]
        told = any("t2/1 for g3" in found.text for found in doctor.examine(bus) if found.level == "error")
        group, parts = observe.group(bus, "t2", "g3")
        page = verdicts.verdict(group, group.workers) is verdicts.UNHELD
        return lines, told, page, [part.partition for part in parts if part.unheld] == [1]

    # When it was so for less than ten seconds
    for _ in range(3):
        clock.now += 3
        worker.look()
    # Then nothing is said yet: a lane that changes hands is free for a moment too
    assert seen() == ([], False, False, False)
    # When it is so for longer
    clock.now += 3
    worker.look()
    clock.now += UNHELD_SECONDS - 9
    worker.look()
    # Then the lane is named everywhere, in the log once a minute
    lines, *told = seen()
    assert len(lines) == 1
    assert "t2/1 for g3" in lines[0]
    assert told == [True, True, True]
    for _ in range(4):
        clock.now += 3
        worker.look()
    assert len(seen()[0]) == 1
    # And when it is taken, all is well
    monkeypatch.setattr(worker.membership._leases, "take", take)
    settle([worker], clock)
    caplog.clear()
    worker.look()
    assert seen() == ([], False, False, False)
    findings = [found for found in doctor.examine(bus) if found.check == "lanes"]
    assert [found.level for found in findings] == ["ok"]
