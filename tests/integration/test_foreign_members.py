"""Junk in the table of workers and in leases, written by a stranger: the live workers go on, and say so."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import doctor, observe
from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.format.lane_id import LaneId
from bus.streams.embedded import EmbeddedServer
from bus.values import Message
from tests.integration.inline import InlineWorker
from tests.integration.test_ownership import new_bus
from tests.integration.views import Clock, Seer
from tests.unit.test_worker_record import junk
from tests.waiting import wait_until
from workers.liveness import DEAD_SECONDS
from workers.membership.served import DECLARE_SECONDS

pytestmark = pytest.mark.usefixtures("no_database")

SERVES = {"t2/g3", "loose/l"}
RECORDS = [b"{}", b"[]", b"\xff", b"7", b'{"beat":"x"}', b'{"beat":1,"declines":7}', b"x" * 100_000]


@pytest.fixture
def bus(server: EmbeddedServer) -> Iterator[Bus]:
    with new_bus(server) as bus:
        yield bus


def homes(serves: set[str] = SERVES) -> set[LaneId]:
    partitions = {"t2": 3, "loose": 2}
    return {
        LaneId(topic, number, group)
        for topic, group in (each.split("/") for each in serves)
        for number in range(partitions[topic])
    }


def key_of(bus: Bus, lane: LaneId) -> str:
    return bus.keys.partition(lane.topic, lane.partition).lease(lane.group, lane.lane)


def go_on(workers: list[Seer], clock: Clock, seconds: float) -> None:
    ends = clock.now + seconds
    while clock.now < ends:
        clock.now += 3
        for worker in workers:
            worker.look()


def held(workers: list[Seer]) -> set[LaneId]:
    return {lane for worker in workers for lane in worker.scheduler.owned() if lane.lane == "0"}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.binary(min_size=1, max_size=12), junk | st.sampled_from(RECORDS), max_size=4),
    st.lists(st.binary(max_size=20) | st.none() | st.just(b"stranger:1"), min_size=3, max_size=3),
)
def test_junk_in_records_and_leases_keeps_no_lane_from_those_who_live(
    server: EmbeddedServer, records: dict[bytes, bytes], leases: list[bytes | None]
) -> None:
    with new_bus(server) as bus:
        # Given two workers at work, then junk in the table and in the leases of one group
        clock = Clock()
        workers = [Seer(bus, SERVES, clock, loose={"loose/l"}) for _ in range(2)]
        go_on(workers, clock, 6)
        for name, raw in records.items():
            bus.client.call("HSET", bus.keys.workers, name, raw)
        for number, raw in enumerate(leases):
            key = key_of(bus, LaneId("t2", number, "g3"))
            bus.client.call("DEL", key)
            bus.client.call(*(("RPUSH", key, "junk") if raw is None else ("SET", key, raw)))
        # When they go on for as long as it takes to know who is dead
        go_on(workers, clock, DEAD_SECONDS + 12)
        # Then every lane is theirs, doctor and pages answer, and what is junk is still there to be looked at
        assert held(workers) == homes()
        findings = doctor.examine(bus)
        assert not [found for found in findings if found.level == "error"]
        observe.overview(bus)
        observe.group(bus, "t2", "g3")


@pytest.mark.both_servers
def test_unreadable_records_are_logged_once_a_minute_and_shown_by_doctor_with_what_to_do(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    worker = Seer(bus, SERVES, clock)
    bus.client.call("HSET", bus.keys.workers, b"bad\xff", b"{}", b"worse", b"\x1b[31m" + b"y" * 5000)
    go_on([worker], clock, 30)
    lines = [record.message for record in caplog.records if "record of a worker" in record.message]
    assert len(lines) == 2
    assert all(len(line) < 500 and line.isprintable() for line in lines)
    [found] = [found for found in doctor.examine(bus) if found.check == "workers"]
    assert found.level == "warning"
    assert "is not JSON" in found.text
    assert "no name of a worker" in found.text
    assert f"HDEL {bus.keys.workers}" in found.hint
    bus.client.call("HDEL", bus.keys.workers, b"bad\xff", b"worse")
    assert [found.level for found in doctor.examine(bus) if found.check in ("workers", "lanes")] == ["ok"]


def test_leases_that_cannot_be_read_are_shown_by_doctor(bus: Bus) -> None:
    # Given no worker that would take them over
    clock = Clock()
    Seer(bus, SERVES, clock).look()
    bus.client.call("DEL", bus.keys.workers)
    bus.client.call("SET", key_of(bus, LaneId("t2", 0, "g3")), b"\xff\x00")
    bus.client.call("DEL", key_of(bus, LaneId("t2", 1, "g3")))
    bus.client.call("RPUSH", key_of(bus, LaneId("t2", 1, "g3")), "x")
    [found] = [found for found in doctor.examine(bus) if found.check == "leases"]
    assert "t2:0" in found.text
    assert "t2:1" in found.text
    observe.group(bus, "t2", "g3")


def test_the_table_of_workers_of_another_type_is_an_error_of_doctor_and_no_page_fails(bus: Bus) -> None:
    bus.client.call("SET", bus.keys.workers, "x")
    [found] = [found for found in doctor.examine(bus) if found.check == "workers"]
    assert (found.level, f"DEL {bus.keys.workers}" in found.hint) == ("error", True)
    assert observe.workers(bus) == []
    observe.overview(bus)


def test_a_worker_whose_record_cannot_be_read_but_changes_keeps_its_leases(bus: Bus) -> None:
    # Given a worker of a version that writes other records, which holds a lane
    clock = Clock()
    worker = Seer(bus, SERVES, clock)
    lane = LaneId("t2", 0, "g3")
    bus.client.call("SET", key_of(bus, lane), "future-1:7")
    for beat in range(20):
        bus.client.call("HSET", bus.keys.workers, "future-1", f"v2 {beat}")
        go_on([worker], clock, 3)
    # Then its lane stays with it as long as it beats
    assert lane not in worker.scheduler.owned()
    assert bus.client.call("GET", key_of(bus, lane)) == b"future-1:7"
    go_on([worker], clock, DEAD_SECONDS + 6)
    assert lane in worker.scheduler.owned()


def test_one_lane_that_cannot_be_taken_keeps_no_other_from_being_taken(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a partition whose stream is of another type
    clock = Clock()
    worker = Seer(bus, SERVES, clock)
    stream = bus.keys.partition("t2", 1).stream
    go_on([worker], clock, 3)
    worker.leave()
    bus.client.call("DEL", stream)
    bus.client.call("SET", stream, "x")
    other = Seer(bus, SERVES, clock)
    # When a worker takes what is there
    for _ in range(4):
        clock.now += 3
        other.membership._attempt(other.membership._look)
    # Then it has all but the one, and says once why
    assert held([other]) == homes() - {LaneId("t2", 1, "g3")}
    assert len([record for record in caplog.records if "cannot be made" in record.message]) == 1
    # And when the stranger's key is gone, it has all, without anybody's doing
    bus.client.call("DEL", stream)
    go_on([other], clock, DECLARE_SECONDS + 6)
    assert held([other]) == homes()


@pytest.mark.both_servers
def test_a_state_of_another_type_keeps_a_new_worker_from_that_one_lane_alone(bus: Bus) -> None:
    # Given a partition in which the state of the group is something else
    clock = Clock()
    state = bus.keys.partition("t2", 1).state("g3")
    bus.client.call("DEL", state)
    bus.client.call("RPUSH", state, "x")
    # When a worker starts
    worker = Seer(bus, SERVES, clock)
    for _ in range(4):
        clock.now += 3
        assert worker.membership._attempt(worker.membership._look)
    # Then it has all other lanes; and this one too, when the key is removed
    assert held([worker]) == homes() - {LaneId("t2", 1, "g3")}
    bus.client.call("DEL", state)
    go_on([worker], clock, DECLARE_SECONDS + 6)
    assert held([worker]) == homes()


@pytest.mark.parametrize("raw", [b"junk", b"{}", b'{"partitions": "x"}'])
@pytest.mark.parametrize("table", ["topics", "groups"])
def test_a_record_of_a_topic_or_group_that_cannot_be_read_takes_no_lane_from_a_worker_at_work(
    bus: Bus, table: str, raw: bytes
) -> None:
    # Given two workers at work, of which one serves what becomes unreadable
    clock = Clock()
    workers = [Seer(bus, SERVES, clock), Seer(bus, {"t2/g3"}, clock)]
    go_on(workers, clock, 9)
    before = [worker.scheduler.owned() for worker in workers]
    # When somebody writes there
    key, name = (bus.keys.topics, "t2") if table == "topics" else (bus.keys.groups, "t2/g3")
    bus.client.call("HSET", key, name, raw)
    # Then nobody gives a lane up, however long it lasts
    go_on(workers, clock, 40)
    assert [worker.scheduler.owned() for worker in workers] == before


def test_the_thread_survives_what_nobody_expects_and_says_it_once_with_a_traceback(
    bus: Bus, caplog: pytest.LogCaptureFixture, transactional_db: None
) -> None:
    seen: list[Any] = []

    def handle(message: Message) -> None:
        seen.append(message.value)

    with InlineWorker(bus, [Subscription(topic="t0", group="g0", handler=handle)]) as worker:
        wait_until(worker.consumer.scheduler.owned, 30, "its lane")
        membership = worker.consumer._membership
        assert membership is not None

        # Given errands that fail as they should not
        def fail() -> None:
            raise ZeroDivisionError("of a programmer")

        for _ in range(5):
            membership._errands.put(fail)
        wait_until(membership._errands.empty, 30, "the errands")
        # Then the thread goes on, and messages are handled
        bus.publish("t0", 1)
        wait_until(lambda: seen == [1], 30, "the message")
        assert membership.is_alive()
    said = [record for record in caplog.records if "A fault in Jitney" in record.message]
    assert len(said) == 1
    assert said[0].levelno == logging.ERROR
    assert said[0].exc_info is not None
    assert isinstance(said[0].exc_info[1], ZeroDivisionError)
