"""Workers come and go: what they leave behind is taken over, and then it is gone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import orjson
import pytest

from bus.client import Bus
from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.subscriptions import Subscription
from bus.format.lane_id import LaneId
from bus.format.partition import partition_of
from bus.format.state import Failure
from bus.streams.commands import fields_of, scan, text
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.values import Message
from tests.integration.inline import InlineWorker
from tests.waiting import wait_until
from workers.liveness import DEAD_SECONDS, LEAD_SECONDS
from workers.membership.identity import this_process
from workers.membership.leases import Leases
from workers.membership.roster import Roster
from workers.order import Fallen
from workers.scheduling.owned import OwnedLane

PARTITIONS = 2


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Any:
    bus = Bus(server.url, prefix=prefix)
    for topic in ("keyed", "loose"):
        bus.topic(topic, partitions=PARTITIONS)
    bus.registry.project(bus.declared.specs().values())
    bus.registry.declare_groups(
        [GroupSpec(topic="keyed", name="g"), GroupSpec(topic="loose", name="g", ordering="none")]
    )
    yield bus
    bus.close()


def a_dead_process() -> int:
    """The id of a process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave_behind(bus: Bus, number: int, pid: int) -> None:
    """What a worker leaves that was killed: its record, leases, a lane with a name, messages in hand."""
    name = f"short-lived-{number}"
    record = {**this_process().to_record(), "pid": pid, "serves": ["keyed/g", "loose/g"], "groups": ["g"],
              "processes": 1, "beat": 1}  # fmt: skip
    partition = number % PARTITIONS
    loose, keyed = bus.keys.partition("loose", partition), bus.keys.partition("keyed", partition)
    lane = f"{name}.0"
    count = 1 if number % 3 == 0 else 0
    calls: list[tuple[Any, ...]] = [
        ("HSET", bus.keys.workers, name, orjson.dumps(record)),
        ("SET", loose.lease("g", lane), f"{name}:1"),
        ("XGROUP", "CREATECONSUMER", loose.stream, "g", lane),
        ("SET", keyed.lease("g", "0"), f"{name}:2"),
    ]
    if count:
        calls += [
            ("XREADGROUP", "GROUP", "g", lane, "COUNT", 1, "STREAMS", loose.stream, ">"),
            ("XREADGROUP", "GROUP", "g", "0", "COUNT", 1, "STREAMS", keyed.stream, ">"),
        ]
    for reply in bus.client.pipe(calls):
        assert not isinstance(reply, Exception), reply


@pytest.mark.both_servers
def test_names_and_lanes_do_not_pile_up_after_two_hundred_short_lived_workers(
    bus: Bus, transactional_db: None
) -> None:
    # Given 200 workers that were killed one after the other, a third of them with messages in hand
    for topic in ("keyed", "loose"):
        bus.publish_many(topic, range(100), key=lambda value: str(value % 7))
    pid = a_dead_process()
    for number in range(200):
        leave_behind(bus, number, pid)
    seen: dict[str, list[int]] = {"keyed": [], "loose": []}

    def handle(message: Message) -> None:
        seen[message.topic].append(message.value)

    subscriptions = [
        Subscription(topic="keyed", group="g", handler=handle),
        Subscription(topic="loose", group="g", handler=handle, ordering="none"),
    ]

    # When one worker lives: it has the lane "0" of each of the four homes, and one more for its slot in each
    # unordered one
    with InlineWorker(bus, subscriptions) as worker:

        def only_it_is_left() -> bool:
            table = fields_of(bus.client.call("HGETALL", bus.keys.workers))
            streams = [bus.keys.partition("loose", number).stream for number in range(PARTITIONS)]
            lanes = [
                text(fields_of(raw)["name"])
                for stream in streams
                for raw in bus.client.call("XINFO", "CONSUMERS", stream, "g")
            ]
            leases = scan(bus.client, f"{bus.settings.prefix}:*:lease:*")
            return (
                set(table) == {worker.name}
                and all(lane.startswith((worker.name, "0")) for lane in lanes)
                and len(leases) == 3 * PARTITIONS
            )

        wait_until(only_it_is_left, 60, "everything else to be gone", 0.2)
        wait_until(lambda: len(seen["keyed"]) + len(seen["loose"]) == 200, 30, "all messages")

    # Then every message was handled once, those in dead hands too
    assert sorted(seen["keyed"]) == sorted(seen["loose"]) == list(range(100))
    assert bus.client.call("HLEN", bus.keys.workers) == 0


def test_the_first_worker_whose_beat_moves_leads_and_one_that_falls_silent_is_followed_soon(bus: Bus) -> None:
    # Given a worker of another host that comes first in sort order
    now, beat = 100.0, 1
    roster = Roster(bus, this_process(), [], 1, clock=lambda: now)
    me = roster._identity.incarnation

    def write() -> None:
        record = {"host": "far", "pid": 1, "boot": "x", "pidns": "x", "start": 1, "started": 0, "groups": [],
                  "serves": [], "processes": 1, "beat": beat}  # fmt: skip
        bus.client.call("HSET", bus.keys.workers, "!first", orjson.dumps(record))

    for _ in range(5):
        write()
        roster.beat()
        assert roster.leader == "!first"
        now, beat = now + 3, beat + 1
    # When its beat stands still
    silent = now - 3
    while roster.leader != me:
        now += 0.5
        roster.beat()
    # Then another leads long before that one counts as dead, whose leases stay
    assert LEAD_SECONDS <= now - silent <= LEAD_SECONDS + 0.5 < DEAD_SECONDS
    assert roster.gone == frozenset()
    # And it leads again when it beats again
    write()
    roster.beat()
    assert roster.leader == "!first"


def fallen_lane(bus: Bus, leases: Leases) -> tuple[OwnedLane, list[str]]:
    """A lane whose slice is over: two messages are done, one of which had failed before; one is to be tried
    again, one can never succeed, one ran, one was not begun. With their ids."""
    for number in range(6):
        bus.publish("keyed", number, key="a")
    partition = partition_of("a", PARTITIONS)
    keys = bus.keys.partition("keyed", partition)
    lane = OwnedLane(LaneState(LaneId("keyed", partition, "g"), leases.new_value(), "key"))
    bus.client.call("SET", keys.lease("g", "0"), lane.lease)
    [[_, entries]] = bus.client.call("XREADGROUP", "GROUP", "g", "0", "STREAMS", keys.stream, ">")
    ids = [text(entry[0]) for entry in entries]
    bus.client.call("HSET", keys.state("g"), ids[1], Failure("x", 2).dump())
    before = Lane(LaneState(lane.id, lane.lease, "none"), keys)
    messages = before.messages(entries)
    again = before.retry(messages[2], 60.0, "no", 5)
    never = before.dead(messages[3], "never", "never", 5)
    lane.fallen = Fallen((ids[0], ids[1]), (again, never), ids[4], False, "worker lost")
    return lane, ids


def assert_settled(bus: Bus, lane: OwnedLane, ids: list[str]) -> dict[str, int]:
    """Nobody handles again what is done, nor tries what was tried without an end. Message → its attempts."""
    keys = bus.keys.partition("keyed", lane.id.partition)
    pending = [text(row[0]) for row in bus.client.call("XPENDING", keys.stream, "g", "-", "+", 10)]
    assert pending == [ids[2], ids[4], ids[5]]
    assert bus.client.call("ZRANGE", keys.retry("g"), 0, -1) == [ids[2].encode()]
    (letter,) = bus.client.call("XRANGE", keys.dead("g"), "-", "+")
    assert letter[1][:4] == [b"id", ids[3].encode(), b"reason", b"never"]
    known = {each: bus.client.call("HGET", keys.state("g"), each) for each in ids}
    return {each: Failure.load(raw).attempts for each, raw in known.items() if raw}


@pytest.mark.both_servers
def test_what_became_of_messages_is_settled_before_a_lane_is_given_back(bus: Bus) -> None:
    leases = Leases(bus, "me")
    lane, ids = fallen_lane(bus, leases)
    leases.give_back([lane])
    assert assert_settled(bus, lane, ids) == {ids[2]: 1, ids[4]: 1}


@pytest.mark.both_servers
def test_all_is_settled_before_a_lane_is_given_back_where_large_dead_letters_take_more_than_one_script(
    bus: Bus,
) -> None:
    # given a lane whose slice left dead letters of which one script moves two, and a message that is done
    for _ in range(6):
        bus.publish("keyed", "x" * 150_000, key="a")
    partition = partition_of("a", PARTITIONS)
    keys, leases = bus.keys.partition("keyed", partition), Leases(bus, "me")
    lane = OwnedLane(LaneState(LaneId("keyed", partition, "g"), leases.new_value(), "key"))
    bus.client.call("SET", keys.lease("g", "0"), lane.lease)
    [[_, entries]] = bus.client.call("XREADGROUP", "GROUP", "g", "0", "STREAMS", keys.stream, ">")
    before = Lane(LaneState(lane.id, lane.lease, "none"), keys)
    records = tuple(before.dead(each, "never", "never", 5) for each in before.messages(entries)[:5])
    lane.fallen = Fallen((text(entries[5][0]),), records)
    # when
    leases.give_back([lane])
    # then
    assert bus.client.call("XPENDING", keys.stream, "g")[0] == 0
    assert bus.client.call("XLEN", keys.dead("g")) == 5


@pytest.mark.both_servers
def test_what_a_slice_has_ended_is_settled_as_soon_as_its_lane_was_taken_back(bus: Bus) -> None:
    # given a lane that was taken back, for which no slot may be free for seconds
    leases = Leases(bus, "me")
    lane, ids = fallen_lane(bus, leases)
    # when
    assert leases.renew(lane, "me:new")
    # then what ran is left to the next slice, and nothing else
    assert assert_settled(bus, lane, ids) == {ids[2]: 1}
    assert lane.fallen == Fallen(running=ids[4])
    assert leases.read([lane.id]) == {lane.id: "me:new"}


def test_all_is_settled_of_a_slice_that_left_many_large_dead_letters_and_much_that_is_done(bus: Bus) -> None:
    large = "x" * 200_000
    for number in range(300):
        bus.publish("keyed", large if number < 10 else number, key="a")
    partition = partition_of("a", PARTITIONS)
    keys, leases = bus.keys.partition("keyed", partition), Leases(bus, "me")
    lane = OwnedLane(LaneState(LaneId("keyed", partition, "g"), leases.new_value(), "key"))
    bus.client.call("SET", keys.lease("g", "0"), lane.lease)
    [[_, entries]] = bus.client.call("XREADGROUP", "GROUP", "g", "0", "STREAMS", keys.stream, ">")
    before = Lane(LaneState(lane.id, lane.lease, "none"), keys)
    messages = before.messages(entries)
    refused = tuple(before.dead(message, "never", "never", 5) for message in messages[:10])
    lane.fallen = Fallen(tuple(message.id for message in messages[10:]), refused, None, False, "worker lost")
    leases.give_back([lane])
    assert bus.client.call("XPENDING", keys.stream, "g")[0] == 0
    assert bus.client.call("XLEN", keys.dead("g")) == 10


def test_nothing_is_settled_of_a_lane_that_is_somebody_elses(bus: Bus) -> None:
    leases = Leases(bus, "me")
    lane, _ = fallen_lane(bus, leases)
    keys = bus.keys.partition("keyed", lane.id.partition)
    bus.client.call("SET", keys.lease("g", "0"), "other:1")
    assert not leases.renew(lane, "me:new")
    assert bus.client.call("XPENDING", keys.stream, "g")[0] == 6


def test_a_batch_that_was_in_hand_of_a_slice_that_died_is_suspect_for_whoever_has_the_lane_next(
    bus: Bus,
) -> None:
    for number in range(3):
        bus.publish("keyed", number, key="a")
    partition = partition_of("a", PARTITIONS)
    keys, leases = bus.keys.partition("keyed", partition), Leases(bus, "me")
    lane = OwnedLane(LaneState(LaneId("keyed", partition, "g"), leases.new_value(), "key"))
    bus.client.call("SET", keys.lease("g", "0"), lane.lease)
    [[_, entries]] = bus.client.call("XREADGROUP", "GROUP", "g", "0", "STREAMS", keys.stream, ">")
    last = text(entries[-1][0])
    lane.fallen = Fallen((), (), last, True, "worker lost")
    leases.give_back([lane])
    assert bus.client.call("HGET", keys.state("g"), "suspect:0") == last.encode()
    assert bus.client.call("GET", keys.lease("g", "0")).startswith(b"free:")
