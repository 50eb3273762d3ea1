"""Killed workers leave leases and consumer names of unordered lanes behind: all of them go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import orjson
import pytest

from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.operating import groups
from bus.streams.commands import fields_of, scan, text
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.values import Message
from tests.integration.inline import InlineWorker
from tests.integration.views import Clock, Seer
from tests.waiting import wait_until
from workers.liveness import DEAD_SECONDS
from workers.membership.strays import HINT_SECONDS, STRAY_SECONDS
from workers.membership.sweep import REST_SECONDS, SCAN_SECONDS

pytestmark = pytest.mark.usefixtures("no_database")

PARTITIONS, SLOTS = 3, 2
SERVES, LOOSE = {"loose/l", "keyed/k"}, {"loose/l"}


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    for topic in ("loose", "keyed", "gone"):
        bus.topic(topic, partitions=PARTITIONS)
    bus.registry.project(bus.declared.specs().values())
    yield bus
    bus.close()


def leases(bus: Bus) -> set[str]:
    return set(scan(bus.client, f"{bus.settings.prefix}:*:lease:*"))


def names(bus: Bus) -> set[str]:
    found = set()
    for topic in ("loose", "keyed"):
        for number in range(PARTITIONS):
            stream = bus.keys.partition(topic, number).stream
            for group in bus.client.call("XINFO", "GROUPS", stream):
                consumers = bus.client.call("XINFO", "CONSUMERS", stream, fields_of(group)["name"])
                found |= {f"{stream} {text(fields_of(raw)['name'])}" for raw in consumers}
    return found


def go_on(worker: Seer, clock: Clock, seconds: float) -> None:
    """The worker looks each 3 s for so long, by its clock."""
    ends = clock.now + seconds
    while clock.now < ends:
        clock.now += 3
        worker.look()


def killed(bus: Bus, clock: Clock, seers: list[Seer]) -> None:
    """A worker that joins, takes its lanes while the others look on, and is seen no more."""
    victim = Seer(bus, SERVES, clock, loose=LOOSE, slots=SLOTS)
    for _ in range(3):
        clock.now += 3
        for each in (*seers, victim):
            each.look()
    assert victim.scheduler.owned()


@pytest.mark.both_servers
def test_no_lease_and_no_name_stays_of_workers_that_were_killed_before_they_read_anything(bus: Bus) -> None:
    # Given a worker alone, with all that belongs to it
    clock = Clock()
    worker = Seer(bus, SERVES, clock, loose=LOOSE, slots=SLOTS)
    go_on(worker, clock, 12)
    before = leases(bus), names(bus)
    assert len(before[0]) == len(before[1]) == 2 * PARTITIONS + SLOTS * PARTITIONS
    # When others come and are killed, idle: none of their lanes ever had a message
    for _ in range(3):
        killed(bus, clock, [worker])
        assert len(leases(bus)) >= len(before[0]) + SLOTS * PARTITIONS
    # Then nothing is left of them as soon as they are known to be dead
    go_on(worker, clock, DEAD_SECONDS + 15)
    assert (leases(bus), names(bus)) == before
    assert bus.client.call("HLEN", bus.keys.workers) == 1


def test_a_lane_has_its_name_from_its_first_lease_on_and_no_lease_is_taken_without_its_group(
    bus: Bus,
) -> None:
    # Given a worker
    clock = Clock()
    worker = Seer(bus, SERVES, clock, loose=LOOSE, slots=SLOTS)
    go_on(worker, clock, 3)
    assert {key.rpartition(":")[2] for key in leases(bus)} == {name.split()[1] for name in names(bus)}
    # When a partition's group vanishes together with all leases
    bus.client.call("DEL", *leases(bus))
    bus.client.call("XGROUP", "DESTROY", bus.keys.partition("loose", 0).stream, "l")
    # Two looks: a look asks at its beginning which ordering is in effect where that is not known, and sees
    # later that a lease is lost, perhaps because another ordering took effect. So the lane is taken by what
    # the next one is told, which a worker begins at once (Keeper.look), and this test 3 s later.
    go_on(worker, clock, 6)
    # Then where it is missing no lease is taken before the group is made again, which is at the next look
    taken = {key.split("{")[1].split("}")[0] for key in leases(bus)}
    assert "loose:0" not in taken
    assert "loose:1" in taken
    go_on(worker, clock, 6)
    assert len(leases(bus)) == 2 * PARTITIONS + SLOTS * PARTITIONS


@pytest.mark.both_servers
def test_slot_lanes_of_an_ordering_that_was_changed_go_when_nothing_is_pending_there(bus: Bus) -> None:
    # Given workers that were killed under the ordering "none"
    clock = Clock()
    worker = Seer(bus, SERVES, clock, loose=LOOSE, slots=SLOTS)
    go_on(worker, clock, 6)
    killed(bus, clock, [worker])
    # When the group is ordered from now on, for all workers
    worker.leave()
    spec = next(group for group in bus.registry.groups() if group.topic == "loose")
    bus.registry.set_group(replace(spec, ordering="key"))
    other = Seer(bus, SERVES, clock, slots=SLOTS)
    # Then only the one lane of each partition is left
    go_on(other, clock, DEAD_SECONDS + 30)
    assert {key.rpartition(":")[2] for key in leases(bus)} == {"0"}
    assert {name.split()[1] for name in names(bus)} == {"0"}


@pytest.mark.both_servers
def test_leases_that_nothing_else_finds_are_found_by_the_walk_through_all_keys(bus: Bus) -> None:
    # Given leases without consumer name of workers long gone, of a group and a topic that were deleted, of a
    # partition that there is no more; some free, some held, one of another type
    clock, keys = Clock(), bus.keys
    bus.registry.declare_groups([GroupSpec(topic="gone", name="g")])
    left = [
        keys.partition("loose", 0).lease("l", "dead-1.0"),
        keys.partition("loose", 1).lease("l", "dead-1.1"),
        keys.partition("keyed", 0).lease("deleted", "0"),
        keys.partition("gone", 1).lease("g", "0"),
        keys.partition("keyed", PARTITIONS + 5).lease("k", "0"),
    ]
    for key in left:
        bus.client.call("SET", key, "dead-1:7")
    bus.client.call("SET", left[1], "free:dead-1-7")
    junk = keys.partition("loose", 2).lease("l", "dead-1.0")
    bus.client.call("RPUSH", junk, "junk")
    bus.client.call("HDEL", keys.topics, "gone")
    # And one with something pending, of a group that nobody declares
    receipt = bus.publish("keyed", 1, key="b")
    stream = keys.partition("keyed", receipt.partition).stream
    kept = keys.partition("keyed", receipt.partition).lease("undeclared", "dead-1.0")
    bus.client.call("XGROUP", "CREATE", stream, "undeclared", "0")
    bus.client.call("XREADGROUP", "GROUP", "undeclared", "dead-1.0", "STREAMS", stream, ">")
    bus.client.call("SET", kept, "dead-1:8")
    # When a worker leads for long enough to know who is dead, and to go through all keys
    worker = Seer(bus, SERVES, clock, loose=LOOSE, slots=SLOTS)
    size = bus.client.call("DBSIZE")
    walk = SCAN_SECONDS * (2 + size / 500)
    go_on(worker, clock, walk)
    clock.now += REST_SECONDS - walk - 2 * DEAD_SECONDS
    go_on(worker, clock, 3 * DEAD_SECONDS + walk)
    # Then they are gone, but for the one with something pending and those of the worker itself
    ours = {key for key in leases(bus) if bus.client.call("GET", key).startswith(worker.name.encode())}
    assert leases(bus) == ours | {kept}
    assert len(ours) == 2 * PARTITIONS + SLOTS * PARTITIONS


def test_a_group_that_is_deleted_leaves_no_lease_even_if_one_is_taken_meanwhile(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that takes a lane of a group just while it is being deleted
    clock = Clock()
    worker = Seer(bus, SERVES, clock, loose=LOOSE, slots=SLOTS)
    go_on(worker, clock, 6)
    real = bus.client.pipe

    def pipe(commands: list[tuple[object, ...]]) -> list[object]:
        if commands and commands[0][:2] == ("XGROUP", "DESTROY"):
            monkeypatch.setattr(bus.client, "pipe", real)
            bus.client.call("SET", bus.keys.partition("loose", 0).lease("l", "late.0"), "late:1")
        return real(commands)

    monkeypatch.setattr(bus.client, "pipe", pipe)
    groups.delete(bus, "loose", "l")
    # Then no lease of it is there
    assert not [key for key in leases(bus) if "{loose:" in key]


@pytest.mark.both_servers
def test_who_starts_after_a_worker_was_found_dead_drains_its_lanes_at_once(bus: Bus) -> None:
    # Given a worker that was killed with a message in hand in each partition of an unordered group
    clock = Clock()
    witness = Seer(bus, {"keyed/k", "loose/l"}, clock, loose=LOOSE, slots=SLOTS)
    go_on(witness, clock, 6)
    victim = Seer(bus, SERVES, clock, loose=LOOSE, slots=SLOTS)
    for _ in range(3):
        clock.now += 3
        witness.look()
        victim.look()
    for number in range(PARTITIONS):
        stream = bus.keys.partition("loose", number).stream
        bus.client.call("XADD", stream, "*", "v", "1")
        bus.client.call("XREADGROUP", "GROUP", "l", f"{victim.name}.0", "COUNT", 1, "STREAMS", stream, ">")
    # When another sees it dead, and is replaced right after that, before it adopts them
    witness.membership._orphans.tend = lambda homes: None  # type: ignore[method-assign]
    for _ in range(int(DEAD_SECONDS // 3) + 2):
        clock.now += 3
        witness.look()
    witness.leave()
    successor = Seer(bus, SERVES, clock, loose=LOOSE, slots=SLOTS)
    go_on(successor, clock, 6)
    # Then the one that came has them, message by message, without watching for as long as it takes to be dead
    drained = {lane for lane in successor.scheduler.owned() if lane.lane == f"{victim.name}.0"}
    homes = {lane.partition for lane in successor.scheduler.owned() if (lane.group, lane.lane) == ("l", "0")}
    assert {lane.partition for lane in drained} == homes
    assert homes
    for lane in drained:
        state = bus.keys.partition("loose", lane.partition).state("l")
        assert bus.client.call("HEXISTS", state, f"suspect:{lane.lane}") == 1


@pytest.mark.parametrize("reordered", [False, True], ids=["ordering kept", "ordering changed"])
@pytest.mark.parametrize("whose", ["dead-9.0", "its own.7"])
def test_a_lane_in_the_name_of_a_live_worker_that_does_not_hold_it_is_drained_all_the_same(
    bus: Bus, whose: str, reordered: bool
) -> None:
    # Given two workers, of which each has homes in an unordered group
    clock = Clock()
    one, two = (Seer(bus, SERVES, clock, loose=LOOSE, slots=SLOTS) for _ in range(2))

    def go_on_both(seconds: float) -> None:
        for _ in range(int(seconds // 3)):
            clock.now += 3
            one.look()
            two.look()

    go_on_both(15)
    # When a server that comes back with older data says, in a home of the one, that a lane with something
    # pending is in the hands of the other
    home = next(lane for lane in sorted(one.scheduler.owned()) if (lane.group, lane.lane) == ("l", "0"))
    keys = bus.keys.partition("loose", home.partition)
    name = whose.replace("its own", two.name)
    bus.client.call("XADD", keys.stream, "*", "v", "1")
    bus.client.call("XREADGROUP", "GROUP", "l", name, "COUNT", 1, "STREAMS", keys.stream, ">")
    bus.client.call("SET", keys.lease("l", name), f"{two.name}:9999")
    if reordered:
        spec = next(group for group in bus.registry.groups() if group.topic == "loose")
        bus.registry.set_group(replace(spec, ordering="key"))
        bus.registry.hint("ordering")
    go_on_both(STRAY_SECONDS + HINT_SECONDS + 30)
    # Then the one who has the home has it, to drain it
    held = {
        lane.lane: value for lane, value in one.scheduler.owned().items() if lane.partition == home.partition
    }
    in_good_hands = whose != "dead-9.0" and not reordered
    if in_good_hands:  # a worker looks after the lanes of its own slots, as long as they are wanted
        assert bus.client.call("GET", keys.lease("l", name)).decode().startswith(two.name)
    else:
        assert name in held
        assert bus.client.call("GET", keys.lease("l", name)) == held[name].encode()
        assert bus.client.call("HEXISTS", keys.state("l"), f"suspect:{name}") == 1


@pytest.mark.both_servers
def test_what_killed_workers_had_in_hand_is_handled_and_then_their_lanes_go(
    bus: Bus, transactional_db: None
) -> None:
    # Given lanes of killed workers in all partitions, of which some have a message in hand
    bus.registry.declare_groups([GroupSpec(topic="loose", name="l", ordering="none")])
    for number in range(3 * PARTITIONS):
        bus.publish("loose", number, key=str(number))
    record = {"host": "far", "pid": 1, "boot": "x", "pidns": "x", "start": 1, "started": 0, "groups": ["l"],
              "serves": ["loose/l"], "processes": 1, "beat": 1}  # fmt: skip
    bus.client.call("HSET", bus.keys.workers, "dead-1", orjson.dumps(record))
    for number in range(PARTITIONS):
        keys = bus.keys.partition("loose", number)
        for slot in range(SLOTS):
            bus.client.call("SET", keys.lease("l", f"dead-1.{slot}"), f"dead-1:{number}{slot}")
        bus.client.call("XREADGROUP", "GROUP", "l", "dead-1.0", "COUNT", 1, "STREAMS", keys.stream, ">")
    seen: list[int] = []

    def handle(message: Message) -> None:
        seen.append(message.value)

    # When one worker lives
    with InlineWorker(bus, [Subscription(topic="loose", group="l", handler=handle, ordering="none")]) as one:
        expected = {
            bus.keys.partition("loose", number).lease("l", lane)
            for number in range(PARTITIONS)
            for lane in ("0", f"{one.name}.0")
        }

        def is_clean() -> bool:
            stray = {name for name in names(bus) if name.split()[1] not in ("0", f"{one.name}.0")}
            # Leases without a name, as older versions left them, are for the slow walk.
            found = {key for key in leases(bus) if not key.endswith(":dead-1.1")}
            return len(seen) == 3 * PARTITIONS and found == expected and not stray

        wait_until(is_clean, 60, "all that is dead to be gone", 0.2)
    # Then each message was handled once
    assert sorted(seen) == list(range(3 * PARTITIONS))
