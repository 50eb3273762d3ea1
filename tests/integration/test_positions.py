"""A group is reset: the plan is exact, the reset whole, nothing of before settles into what comes after."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus.client import Bus
from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.turn import Turns
from bus.errors import BusUnavailable, ConfigurationError, ReadOnly, StaleLease, UnknownGroup
from bus.format.lane_id import LaneId
from bus.operating import deadletters, fates, positions, targets
from bus.operating.positions import Plan, PlanChanged
from bus.streams import commands, counting
from bus.streams.embedded import EmbeddedServer
from bus.topics import resets
from bus.topics.registry import GroupSpec
from bus.values import Message, Ordering, TopicSpec

TOPIC, GROUP = "orders", "stock"

pytestmark = pytest.mark.both_servers


class Shop:
    """A topic of one partition, with a group."""

    def __init__(self, bus: Bus, ordering: Ordering = "key", partitions: int = 1) -> None:
        self.bus = bus
        self.client = bus.client
        self.ordering: Ordering = ordering
        bus.registry.project([TopicSpec(name=TOPIC, partitions=partitions)])
        bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP, ordering=ordering)])
        self.keys = bus.keys.partition(TOPIC, 0)
        self._taken = 0

    def add(self, count: int, *, first: int = 1, partition: int = 0) -> list[str]:
        """Messages with the ids 1000-0, 2000-0, …: of five keys in turn."""
        stream = self.bus.keys.partition(TOPIC, partition).stream
        ids = [f"{number * 1000}-0" for number in range(first, first + count)]
        asked = [("XADD", stream, id, "v", str(n), "k", f"k{n % 5}") for n, id in enumerate(ids, first)]
        for reply in self.client.pipe(asked):
            assert not isinstance(reply, Exception), reply
        return ids

    def turns(self) -> Turns:
        """A slice of a worker that has taken the lane."""
        self._taken += 1
        value = f"worker:{self._taken}"
        self.client.call("SET", self.keys.lease(GROUP, "0"), value)
        lane = Lane(LaneState(LaneId(TOPIC, 0, GROUP), value, self.ordering), self.keys)
        turns = Turns(self.bus.endpoint, [lane], held_limit=10_000, dead_limit=10_000)
        turns.open()
        return turns

    def handle(self, count: int = 10_000) -> list[str]:
        """Handle up to so many messages; their ids, in order."""
        turns, handled, empty = self.turns(), [], 0
        while empty < 2 and len(handled) < count:
            batch = taken(turns, min(100, count - len(handled)))
            for message in batch:
                turns.lanes[0].done(message)
            handled += [message.id for message in batch]
            empty = 0 if batch or turns.lanes[0].recovering else empty + 1
        turns.settle()
        close(turns)
        return handled

    def plan(self, target: targets.Target, **about: Any) -> Plan:
        return positions.plan(self.bus, TOPIC, GROUP, target, **about)

    def reset(self, target: targets.Target, **about: Any) -> Plan:
        return positions.reset(self.bus, self.plan(target), **about)

    def reserved(self) -> dict[str, Any]:
        """What the server says of the group."""
        groups = self.client.call("XINFO", "GROUPS", self.keys.stream)
        named = [commands.fields_of(raw) for raw in groups]
        return next(known for known in named if commands.text(known["name"]) == GROUP)


def taken(turns: Turns, count: int) -> list[Message]:
    return [message for _, batch in turns.take(count) for message in batch]


def first(turns: Turns, count: int) -> list[Message]:
    """The first messages of a group: the first turn looks for left-overs only."""
    return taken(turns, count) or taken(turns, count)


def close(turns: Turns) -> None:
    if (link := turns.close()) is not None:
        link.close()


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    yield bus
    bus.close()


@pytest.fixture
def shop(bus: Bus) -> Shop:
    return Shop(bus)


def at_time(ms: int) -> targets.Target:
    return targets.at(datetime.fromtimestamp(ms / 1000, UTC))


TARGETS = [
    (targets.at("earliest"), 1),
    (targets.at("latest"), None),
    (targets.at("70000-0"), 71),
    (targets.at("70000-5"), 71),
    (at_time(70_000), 70),
    (at_time(69_001), 70),
    (targets.offset(0), 1),
    (targets.offset(30), 31),
    (targets.offset(99), 100),
    (targets.offset(100), None),
    (targets.offset(10**15), None),
    (targets.shift(-1), 50),
    (targets.shift(-150), 1),
    (targets.shift(+20), 71),
    (targets.shift(+150), None),
    (targets.shift(0), 51),
    (targets.at("99999999999999-0"), None),
    (targets.like("other"), 81),
    (targets.exactly({0: "40000-0"}), 41),
    (targets.exactly({0: "40"}), 41),
]


@pytest.mark.parametrize(
    ("target", "next_number"), TARGETS, ids=lambda value: getattr(value, "text", str(value))
)
def test_the_group_goes_on_where_the_target_says_and_the_plan_says_so_before(
    shop: Shop, target: targets.Target, next_number: int | None
) -> None:
    # Given 100 messages, of which a group has handled 50; another one has been given 80
    ids = shop.add(100)
    shop.bus.registry.declare_groups([GroupSpec(topic=TOPIC, name="other")])
    shop.client.call("XGROUP", "SETID", shop.keys.stream, "other", ids[79])
    assert shop.handle(50) == ids[:50]
    # When it is reset
    planned = shop.plan(target)
    [move] = shop.reset(target).moves
    # Then the plan was exact, and the group goes on there
    wanted = ids[next_number - 1 :] if next_number is not None else []
    assert planned.moves == (move,)
    assert (move.before.id, move.before.offset) == (ids[49], 50)
    assert move.after.offset == 100 - len(wanted)
    assert move.replayed == max(0, len(wanted) - 50)
    assert move.skipped == max(0, 50 - len(wanted))
    assert shop.reserved()["lag"] == len(wanted)
    assert shop.handle() == wanted
    # And new messages come after it
    assert shop.handle() == []
    new = shop.add(3, first=101)
    assert shop.handle() == new


def test_clamped_and_trimmed_targets_are_said(shop: Shop) -> None:
    ids = shop.add(100)
    shop.handle(50)
    shop.client.call("XTRIM", shop.keys.stream, "MINID", ids[10])

    def warnings(target: targets.Target) -> str:
        return "; ".join(shop.plan(target).moves[0].warnings)

    assert "offset -100 was before the beginning: to 10" in warnings(targets.shift(-150))
    assert "offset 200 lies past the end: to 100" in warnings(targets.shift(+150))
    assert "offset 5 was trimmed away: to 10" in warnings(targets.offset(5))
    assert "trimmed away" in warnings(targets.at("5000-0"))
    assert "it lies past the last message" in warnings(targets.at("5000000-0"))
    assert "it lies past the last message" in warnings(targets.ago(timedelta(milliseconds=1)))
    assert warnings(targets.shift(0)) == "nothing to do"
    [move] = shop.reset(targets.offset(5)).moves
    assert (move.after.offset, move.replayed) == (10, 40)
    assert shop.handle() == ids[10:]


@pytest.mark.parametrize("ordering", ["key", "partition"])
@pytest.mark.parametrize("to", [0, 30, 100])
def test_what_waits_is_forgotten_and_comes_again_only_after_the_new_position(
    bus: Bus, ordering: Ordering, to: int
) -> None:
    # Given messages that wait for a retry, that are held back, in hand, and done
    shop = Shop(bus, ordering)
    ids = shop.add(100)
    turns = shop.turns()
    lane = turns.lanes[0]
    for message in first(turns, 60):
        if lane.must_wait(message):
            lane.hold(message)
        elif message.id in (ids[20], ids[41]):
            lane.retry(message, 3_600, "it fails", 0)
        elif message.id not in ids[55:60]:
            lane.done(message)
    turns.settle()
    [move] = shop.plan(targets.offset(to)).moves
    waiting = shop.reserved()["pending"]
    assert move.pending == waiting > 5
    assert move.abandoned == len(
        [row for row in shop.client.call("XPENDING", shop.keys.stream, GROUP, "-", "+", 1000)
         if int(row[0].split(b"-")[0]) <= to * 1000]
    )  # fmt: skip
    # When the group is reset under the slice that has some of them in hand
    shop.reset(targets.offset(to))
    # Then that slice can neither settle nor fetch
    with pytest.raises(StaleLease):
        turns.prove()
    close(turns)
    # And all from there on are handled, in order, once, and nothing else
    assert shop.reserved()["pending"] == 0
    assert shop.handle() == ids[to:]
    assert shop.client.call("EXISTS", shop.keys.retry(GROUP), shop.keys.held(GROUP)) == 0
    state = commands.fields_of(shop.client.call("HGETALL", shop.keys.state(GROUP)))
    assert not [name for name in state if name[0].isdigit() or name.startswith(("suspect", "reset"))]


@pytest.mark.parametrize("steps", range(1, 8))
def test_a_reset_that_is_cut_short_anywhere_is_brought_to_its_end_by_whoever_comes_next(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    # Given a group of which much is pending
    ids = shop.add(2_500)
    turns = shop.turns()
    for _ in range(26):
        taken(turns, 100)
    close(turns)
    planned = shop.plan(targets.offset(100))
    # When the process of the reset dies before one of its scripts
    ran, run = [], commands.run_many

    def run_many(client: Any, name: str, calls: Any) -> Any:
        if name.startswith("reset"):
            if len(ran) == steps:
                raise BusUnavailable("this process ends here")
            ran.append(name)
        return run(client, name, calls)

    monkeypatch.setattr(commands, "run_many", run_many)
    with contextlib.suppress(BusUnavailable):
        positions.reset(shop.bus, planned)
    monkeypatch.undo()
    # Then nobody can take the lane until the partition is made again, as a worker does that is refused
    keys, lease = shop.keys, shop.client.call("GET", shop.keys.lease(GROUP, "0")) or b""
    own = [keys.lease(GROUP, "0"), keys.stream, keys.state(GROUP), keys.retry(GROUP), keys.held(GROUP)]
    code, *_ = commands.run(shop.client, "lease", own, [lease, "worker:9", GROUP, "0", "", "key"])
    assert code == (2 if len(ran) == steps and steps < 7 and b"reset" in _fields(shop) else 1)
    shop.bus.registry.restore_partition(TOPIC, 0)
    assert b"reset" not in _fields(shop)
    assert shop.handle() == ids[100:]


def _fields(shop: Shop) -> list[bytes]:
    fields: list[bytes] = shop.client.call("HKEYS", shop.keys.state(GROUP))
    return fields


def test_a_dead_letter_stays_one_while_a_reset_is_on_its_way(shop: Shop) -> None:
    # Given a dead letter, and a reset that has begun
    ids = shop.add(10)
    turns = shop.turns()
    for message in first(turns, 10):
        turns.lanes[0].dead(message, "poison", "it fails", 0)
    turns.settle()
    close(turns)
    about = {"to": "0-0", "read": 0, "era": shop.plan(targets.shift(0)).moves[0].era, "new_era": "next"}
    begun = resets.begin(shop.client, shop.keys, GROUP, **about)
    assert isinstance(begun, resets.Begun)
    # When somebody retries the letters, then they stay
    selection = deadletters.Selection()
    letters = list(deadletters.find(shop.bus, TOPIC, GROUP, selection))
    answers = fates.retry(shop.bus, TOPIC, GROUP, letters)
    assert {fate.name for fate in answers} == {"KEPT"}
    # And after the reset all comes again
    resets.finish(shop.client, shop.keys, GROUP)
    assert shop.handle() == ids


def test_nothing_is_trimmed_that_a_reset_leads_back_to(shop: Shop) -> None:
    ids = shop.add(10)
    shop.handle()
    move = shop.plan(targets.at("earliest")).moves[0]
    resets.begin(shop.client, shop.keys, GROUP, to="0-0", read=0, era=move.era, new_era="next")
    own = [shop.keys.stream, f"{shop.keys.stream}:ahead", shop.keys.state(GROUP)]
    assert commands.run(shop.client, "trim", own, [10**13, 10**13, 60_000, GROUP])[0] == -2
    resets.finish(shop.client, shop.keys, GROUP)
    assert shop.handle() == ids


def test_a_group_that_is_lost_during_its_reset_is_made_again_where_that_leads(shop: Shop) -> None:
    ids = shop.add(100)
    shop.handle(50)
    move = shop.plan(targets.offset(20)).moves[0]
    about = {"to": move.after.id, "read": 20, "era": move.era, "new_era": "next"}
    resets.begin(shop.client, shop.keys, GROUP, **about)
    shop.client.call("XGROUP", "DESTROY", shop.keys.stream, GROUP)
    shop.bus.registry.restore_partition(TOPIC, 0)
    assert shop.handle() == ids[20:]


def test_a_plan_of_another_basis_is_refused_and_changes_nothing(shop: Shop) -> None:
    # Given a plan that somebody has seen
    ids = shop.add(100)
    shop.handle(50)
    seen = shop.plan(targets.at("earliest"))
    # When the group goes on before it is done
    shop.handle(10)
    now = shop.plan(targets.at("earliest"))
    assert now.basis != seen.basis
    with pytest.raises(PlanChanged, match="nothing was done"):
        positions.reset(shop.bus, now, basis=seen.basis)
    with pytest.raises(PlanChanged, match="the group has moved on"):
        positions.reset(shop.bus, seen, basis=seen.basis)
    # Then it is where it was; and without a basis it moves, and says from where
    assert shop.reserved()["lag"] == 40
    [move] = positions.reset(shop.bus, seen).moves
    assert (move.before.offset, move.replayed) == (60, 60)
    assert shop.handle() == ids


def test_a_stream_that_was_made_anew_since_the_plan_refuses_it(shop: Shop) -> None:
    shop.add(10)
    planned = shop.plan(targets.at("latest"))
    shop.client.call("DEL", shop.keys.stream)
    shop.bus.registry.restore_partition(TOPIC, 0)
    ids = shop.add(5)
    with pytest.raises(PlanChanged, match="the stream was made anew"):
        positions.reset(shop.bus, planned)
    assert shop.handle() == ids


def test_partitions_are_chosen_and_checked(bus: Bus) -> None:
    shop = Shop(bus, partitions=3)
    for number in range(3):
        shop.add(10, partition=number)
    planned = shop.plan(targets.at("latest"), partitions=[1, 2])
    assert [move.partition for move in planned.moves] == [1, 2]
    positions.reset(bus, planned)
    assert [move.skipped for move in shop.plan(targets.at("latest")).moves] == [10, 0, 0]
    with pytest.raises(ConfigurationError, match="partitions 0 to 2, no 7"):
        shop.plan(targets.at("latest"), partitions=[7])
    assert [move.partition for move in shop.plan(targets.exactly({2: "0-0"})).moves] == [2]
    with pytest.raises(ConfigurationError, match="do not fit topic"):
        shop.plan(targets.exactly({5: "0-0"}))
    with pytest.raises(ConfigurationError, match="neither an offset nor an id"):
        targets.exactly({0: "soon"})
    with pytest.raises(UnknownGroup):
        shop.plan(targets.like("nobody"))


def test_a_read_only_bus_plans_and_does_not_reset(shop: Shop, server: EmbeddedServer) -> None:
    shop.add(10)
    looking = Bus(server.url, prefix=shop.bus.settings.prefix, read_only=True)
    planned = positions.plan(looking, TOPIC, GROUP, targets.at("latest"))
    with pytest.raises(ReadOnly):
        positions.reset(looking, planned)
    looking.close()


def test_a_junk_reset_of_a_stranger_stops_nobody(shop: Shop) -> None:
    ids = shop.add(10)
    for junk in (b"\xff", b"{}", b'{"to": 5}', b'{"to": "x", "read": -1, "era": 3}'):
        shop.client.call("HSET", shop.keys.state(GROUP), "reset", junk)
        shop.bus.registry.restore_partition(TOPIC, 0)
        assert b"reset" not in _fields(shop)
    assert shop.handle() == ids


@pytest.mark.parametrize(
    "steps", [0, 1, 2, 999, 1000, 1001, 2999, -1, -2, -999, -1000, -1001, -2998, -2999, -5000]
)
def test_seeking_goes_so_many_messages_on_or_back(shop: Shop, steps: int) -> None:
    ids = shop.add(3_000)
    start = 0 if steps >= 0 else 2_999
    at = start + steps
    wanted = ids[at] if at >= 0 else "0-0"
    assert counting.seek(shop.client, shop.keys.stream, ids[start], steps) == wanted
