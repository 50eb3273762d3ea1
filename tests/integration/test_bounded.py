"""No script does more than a bounded amount of work; what is more goes in pages that can be interrupted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import orjson
import pytest

from bus.client import Bus
from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.outcomes import Outcomes
from bus.consuming.portions import portions
from bus.consuming.turn import Turns
from bus.errors import BusUnavailable
from bus.format.keys import PartitionKeys, pad_id
from bus.format.lane_id import LaneId
from bus.format.partition import key_hash
from bus.operating import delayed, groups
from bus.operating.delayed import DelayedRef
from bus.streams import commands
from bus.streams.connect import Client
from bus.streams.embedded import EmbeddedServer
from bus.streams.wire import Link
from bus.topics import making
from bus.topics.registry import GroupSpec
from bus.transactions import marks
from bus.upkeep import retention
from bus.values import Message, Ordering, TopicSpec, id_pair
from tests.waiting import wait_until

TOPIC, GROUP, LEASE = "orders", "stock", "worker:1"

#: Commands that one script may run: those of the longest cost some 3 µs each.
MOST = 2_600

pytestmark = pytest.mark.both_servers


class Scripts:
    """Counts the scripts that are run, and the commands in each; and can end this process before one."""

    def __init__(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self._client = client
        self._run = commands.run_many
        self.names: list[str] = []
        self.most: Counter[str] = Counter()
        """Script → the most commands that one run of it ran."""
        self.end_at: int | None = None
        monkeypatch.setattr(commands, "run_many", self._run_many)

    def forget(self) -> None:
        self.names.clear()
        self.most.clear()

    def _calls(self) -> int:
        found = 0
        for line in self._client.call("INFO", "commandstats").decode().splitlines():
            if line.startswith("cmdstat_") and not line.startswith(("cmdstat_info", "cmdstat_eval")):
                found += int(line.partition("calls=")[2].partition(",")[0])
        return found

    def _run_many(self, client: Client, name: str, calls: Sequence[Any]) -> list[Any]:
        replies = []
        for call in calls:  # one by one, to tell them apart
            if self.end_at is not None and len(self.names) >= self.end_at:
                raise BusUnavailable("this process ends here")
            before = self._calls()
            replies += self._run(client, name, [call])
            self.names.append(name)
            self.most[name] = max(self.most[name], self._calls() - before)
        return replies


class Scene:
    """One partition with a group."""

    def __init__(self, bus: Bus, scripts: Scripts) -> None:
        self.bus = bus
        self.client = bus.client
        self.scripts = scripts
        self.keys: PartitionKeys = bus.keys.partition(TOPIC, 0)
        bus.registry.project([TopicSpec(name=TOPIC)])

    def declare(self, ordering: Ordering = "key") -> None:
        self.bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP, ordering=ordering)])

    def pipe(self, asked: Sequence[Any]) -> None:
        for reply in self.client.pipe(asked):
            assert not isinstance(reply, Exception), reply

    def add(self, count: int, value: bytes = b"1", keys: int = 5) -> list[str]:
        ids = [f"{number}-0" for number in range(1, count + 1)]
        self.pipe(
            [("XADD", self.keys.stream, id, "v", value, "k", f"k{n % keys}") for n, id in enumerate(ids)]
        )
        return ids

    def give(self, count: int, lane: str = "0") -> None:
        self.client.call("XREADGROUP", "GROUP", GROUP, lane, "COUNT", count, "STREAMS", self.keys.stream, ">")

    def fail(self, ids: Sequence[str], hash: str = "") -> None:
        state = orjson.dumps({"k": hash, "a": 1})
        self.pipe([("ZADD", self.keys.retry(GROUP), n, id) for n, id in enumerate(ids)])
        self.pipe([("HSET", self.keys.state(GROUP), id, state) for id in ids])

    def hold(self, ids: Sequence[str], hash: Callable[[str], str] = lambda _: "h") -> None:
        self.pipe([("ZADD", self.keys.held(GROUP), 0, f"{hash(id)}:{pad_id(id)}") for id in ids])

    def pending(self) -> list[str]:
        found, at = [], "-"
        while page := self.client.call("XPENDING", self.keys.stream, GROUP, at, "+", 1000):
            found += [row[0].decode() for row in page]
            at = f"({found[-1]}"
        return found

    def lag(self) -> int | None:
        [raw] = self.client.call("XINFO", "GROUPS", self.keys.stream)
        known = commands.fields_of(raw)
        return None if known["lag"] is None else int(known["lag"])

    def state(self, field: str) -> bytes | None:
        found: bytes | None = self.client.call("HGET", self.keys.state(GROUP), field)
        return found

    def lane(self, ordering: Ordering = "key") -> Turns:
        self.client.call("SET", self.keys.lease(GROUP, "0"), LEASE)
        turns = Turns(
            self.bus.endpoint,
            [Lane(LaneState(LaneId(TOPIC, 0, GROUP), LEASE, ordering), self.keys)],
            held_limit=10_000,
            dead_limit=10_000,
        )
        turns.open()
        return turns


@pytest.fixture
def scene(server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    bus = Bus(server.url, prefix=prefix)
    yield Scene(bus, Scripts(bus.client, monkeypatch))
    bus.close()


def hash_of(number: int) -> str:
    return key_hash("key", f"k{number}".encode())


# ---------------------------------------------------------------------- counting


def test_a_group_that_begins_in_the_middle_is_counted_in_portions(scene: Scene) -> None:
    scene.add(5_500)
    scene.scripts.forget()
    groups.create(scene.bus, TOPIC, GROUP, start="500-0")
    assert scene.lag() == 5_000
    ran = Counter(scene.scripts.names)
    assert ran["count"] >= 5
    assert ran["ensure"] == 2
    assert max(scene.scripts.most.values()) < 500


def test_large_messages_are_counted_a_few_at_a_time(scene: Scene) -> None:
    scene.add(100, b"x" * 100_000)
    scene.scripts.forget()
    groups.create(scene.bus, TOPIC, GROUP, start="20-0")
    assert scene.lag() == 80
    assert Counter(scene.scripts.names)["count"] >= 8


def test_what_happens_to_the_stream_during_a_count_does_not_make_it_wrong(scene: Scene) -> None:
    """Messages are added and trimmed, before and after where it begins; and the stream is another one."""
    for event in ("added", "trimmed before", "trimmed past", "emptied", "another"):
        scene.client.call("DEL", scene.keys.stream)
        scene.bus.registry.restore_partition(TOPIC, 0)
        scene.add(3_000)
        name = f"g-{event.replace(' ', '-')}"
        done = []

        def meanwhile(event: str = event, done: list[str] = done) -> None:
            if not done:
                done.append(event)
                stream = scene.keys.stream
                if event == "added":
                    scene.client.call("XADD", stream, "9000-0", "v", "1")
                elif event == "another":
                    scene.client.call("DEL", stream)
                    scene.pipe([("XADD", stream, f"{n}-5", "v", "1") for n in range(1, 1_000)])
                else:
                    left = {"trimmed before": 2_900, "trimmed past": 40, "emptied": 0}[event]
                    scene.client.call("XTRIM", stream, "MAXLEN", left)

        run = commands.run_many

        def between(*args: Any, run: Any = run, meanwhile: Any = meanwhile) -> Any:
            reply = run(*args)
            if args[1] == "count":
                meanwhile()
            return reply

        commands.run_many = between
        try:
            scene.bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=name, start="200-0")])
        finally:
            commands.run_many = run
        assert done == [event]
        left = len(scene.client.call("XRANGE", scene.keys.stream, "(200-0", "+"))
        asked = ("XREADGROUP", "GROUP", name, "0", "COUNT", 1, "STREAMS", scene.keys.stream, ">")
        read = scene.client.call(*asked)
        assert (read is None) == (left == 0)
        known = next(
            found
            for raw in scene.client.call("XINFO", "GROUPS", scene.keys.stream)
            if commands.text((found := commands.fields_of(raw))["name"]) == name
        )
        assert known["lag"] == max(0, left - 1), event
        scene.bus.registry.forget_group(TOPIC, name)


# ---------------------------------------------------------------------- giving back


def lose_group(scene: Scene, count: int = 1_700) -> tuple[list[str], list[str]]:
    """A group that is gone; most of its messages waited for a retry, or were held back."""
    scene.declare()
    ids = scene.add(count + 300, keys=1)
    scene.give(count)
    retrying, held = ids[: count // 2], ids[count // 2 : count]
    scene.fail(retrying, hash=hash_of(0))
    scene.hold(held, lambda _: hash_of(0))
    scene.client.call("SET", scene.keys.mark(GROUP), ids[count - 1])
    scene.client.call("XGROUP", "DESTROY", scene.keys.stream, GROUP)
    scene.scripts.forget()
    return retrying, held


def test_what_waited_in_a_lost_group_is_given_back_in_pages(scene: Scene) -> None:
    retrying, held = lose_group(scene)
    scene.bus.registry.restore_partition(TOPIC, 0)
    assert scene.pending() == retrying + held
    assert scene.state("giving") is None
    assert scene.lag() == 300
    assert Counter(scene.scripts.names)["giveback"] >= 4
    assert max(scene.scripts.most.values()) < MOST


def test_giving_back_can_be_ended_before_any_page_and_is_gone_on_with(scene: Scene) -> None:
    page = 0
    while True:
        # Given that some of what waited is gone from the stream
        retrying, held = lose_group(scene)
        scene.client.call("XTRIM", scene.keys.stream, "MINID", retrying[100])
        # When the process that makes the group again dies before a page
        scene.scripts.end_at = page
        try:
            scene.bus.registry.restore_partition(TOPIC, 0)
            ended = False
        except BusUnavailable:
            ended = True
        scene.scripts.end_at = None
        # Then nothing is trimmed until all of it is given back, which trimming itself sees to
        if scene.state("giving") is not None:
            assert ended
            own = [scene.keys.stream, scene.keys.ahead, scene.keys.state(GROUP)]
            assert commands.run(scene.client, "trim", own, [10**15, 10**15, 1000, GROUP])[0] == -2
            assert retention.trim(scene.bus, TopicSpec(name=TOPIC, retention=timedelta(seconds=1))) == 0
        else:
            scene.bus.registry.restore_partition(TOPIC, 0)
        assert scene.state("giving") is None
        assert scene.pending() == retrying[100:] + held
        if not ended:
            break
        scene.client.call("UNLINK", scene.keys.stream, *scene.keys.of_group(GROUP))
        scene.bus.registry.restore_partition(TOPIC, 0)
        page += 1
    assert page >= 5
    # Then each that is gone is counted once, and stops no other of its key
    handled = drain(scene)
    assert scene.state("trimmed") == b"100"
    assert handled == [*retrying[100:], *held, *[f"{n}-0" for n in range(1_701, 2_001)]]


def drain(scene: Scene, ordering: Ordering = "key") -> list[str]:
    """Handle all there is, as a slice does; the ids in the order in which they were handled."""
    turns = scene.lane(ordering)
    lane, handled, empty = turns.lanes[0], [], 0
    for _ in range(2_000):
        if empty == 2:
            break
        messages = [message for _, batch in turns.take(100) for message in batch]
        for message in messages:
            if lane.must_wait(message):
                lane.hold(message)
            else:
                handled.append(message.id)
                lane.done(message)
        # What was just released is due a millisecond later.
        due = turns.due_in()
        empty = 0 if messages or lane.recovering or (due is not None and due < 1) else empty + 1
    turns.settle()
    if (link := turns.close()) is not None:
        link.close()
    return handled


@pytest.mark.parametrize("seed", range(6))
def test_a_group_can_be_served_while_it_is_given_back(
    scene: Scene, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of a few messages, and turns between them as it comes: nothing lost, twice, or out of order."""
    monkeypatch.setattr(making, "MESSAGES_A_SCRIPT", 3)
    dice = random.Random(seed)
    scene.declare()
    ids = scene.add(200, keys=5)
    scene.give(100)
    # Given for each of four keys a failing head with all of that key behind it, and one key without trouble
    for number in range(4):
        mine = ids[number:100:5]
        scene.fail(mine[:1], hash=hash_of(number))
        scene.hold(mine[1:], lambda _, number=number: hash_of(number))
    scene.client.call("XACK", scene.keys.stream, GROUP, *ids[4:100:5])
    scene.client.call("SET", scene.keys.mark(GROUP), ids[99])
    scene.client.call("XGROUP", "DESTROY", scene.keys.stream, GROUP)
    scene.scripts.end_at = len(scene.scripts.names) + 1
    with pytest.raises(BusUnavailable):
        scene.bus.registry.restore_partition(TOPIC, 0)
    scene.scripts.end_at = None
    # When its lane is served between the pages
    turns = scene.lane()
    lane = turns.lanes[0]
    own = [scene.keys.stream, scene.keys.retry(GROUP), scene.keys.held(GROUP), scene.keys.state(GROUP)]
    handled: list[Message] = []
    tried: set[str] = set()
    giving, idle, at = True, 0, b"0"
    for _ in range(2_000):
        if not (giving or idle < 3 or lane.retrying or lane.held):
            break
        if giving and dice.random() < 0.6:
            at = commands.run(scene.client, "giveback", own, [GROUP, 3, at])
            giving = bool(at)
            continue
        messages = [message for _, batch in turns.take(10) for message in batch]
        for message in messages:
            if lane.must_wait(message):
                lane.hold(message)
            elif message.id not in tried and dice.random() < 0.2:
                tried.add(message.id)
                lane.retry(message, 0, "again", 1)
            else:
                handled.append(message)
                lane.done(message)
        idle = 0 if messages or lane.recovering else idle + 1
    turns.settle()
    if (link := turns.close()) is not None:
        link.close()
    # Then each is handled once, those of a key in their order
    for number in range(5):
        mine = [message.id for message in handled if message.key == f"k{number}"]
        begins = 0 if number < 4 else 100
        assert mine == [id for n, id in enumerate(ids) if n % 5 == number and n >= begins]
    assert scene.pending() == []
    assert scene.state("giving") is None


def fetched(turns: Turns) -> tuple[Lane, list[Message]]:
    """What the next turn that brings anything brings, of the one lane."""

    def take() -> tuple[Lane, list[Message]] | None:
        return next(((lane, messages) for lane, messages in turns.take(100) if messages), None)

    found = wait_until(take, 20, "messages")
    assert found is not None
    return found


def in_hand_at_the_loss(scene: Scene, forgetful: bool) -> list[str]:
    """An unordered group that is lost just when a lane has claimed what was due; the ids of that."""
    scene.declare("none")
    ids = scene.add(20)
    turns = scene.lane("none")
    lane, messages = fetched(turns)
    for number, message in enumerate(messages):
        if number % 2:
            lane.done(message)
        else:
            lane.retry(message, 0, "again", 1)
    turns.settle()
    marks.note_unordered(scene.bus, scene.bus.registry.groups(TOPIC))
    assert scene.client.call("GET", scene.keys.mark(GROUP)) == ids[-1].encode()
    if forgetful:
        scene.client.call("HDEL", scene.keys.state(GROUP), ids[0], ids[4])
    _, claimed = fetched(turns)
    assert [message.id for message in claimed] == ids[::2]
    assert scene.client.call("EXISTS", scene.keys.retry(GROUP)) == 0
    scene.client.call("XGROUP", "DESTROY", scene.keys.stream, GROUP)
    if (link := turns.close()) is not None:
        link.close()
    return ids[::2]


@pytest.mark.parametrize("forgetful", [False, True], ids=["", "without a state"])
def test_retries_that_an_unordered_lane_had_in_hand_when_the_group_was_lost_are_given_back(
    scene: Scene, forgetful: bool
) -> None:
    in_hand = in_hand_at_the_loss(scene, forgetful)
    # Given that one of them is gone from the stream, too
    scene.client.call("XTRIM", scene.keys.stream, "MINID", "2-0")
    scene.bus.registry.restore_partition(TOPIC, 0)
    assert scene.state("giving") is None
    # Then it is counted, and all others are tried again; what was settled is not
    assert sorted(drain(scene, "none"), key=id_pair) == in_hand[1:]
    assert scene.state("trimmed") == b"1"
    assert scene.pending() == []


@pytest.mark.parametrize("seed", range(4))
def test_what_was_in_hand_is_given_back_though_lanes_are_put_right_and_served_meanwhile(
    scene: Scene, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "MESSAGES_A_SCRIPT", 3)
    dice = random.Random(seed)
    in_hand = in_hand_at_the_loss(scene, False)
    # Given that the process that gives back ends before some page, and a slice serves the group after that
    scene.scripts.end_at = len(scene.scripts.names) + 1 + dice.randrange(4)
    try:
        scene.bus.registry.restore_partition(TOPIC, 0)
    except BusUnavailable:
        assert scene.state("giving") is not None
    scene.scripts.end_at = None
    handled = drain(scene, "none")
    # When another one goes on
    scene.bus.registry.restore_partition(TOPIC, 0)
    assert scene.state("giving") is None
    handled += drain(scene, "none")
    # Then each was handled, and once
    assert sorted(handled, key=id_pair) == in_hand
    assert scene.pending() == []


def test_what_a_lane_settles_late_is_not_given_back(scene: Scene) -> None:
    scene.declare("none")
    [id] = scene.add(1)
    turns = scene.lane("none")
    lane, [message] = fetched(turns)
    lane.retry(message, 0, "again", 1)
    turns.settle()
    _, [message] = fetched(turns)
    scene.client.call("SET", scene.keys.mark(GROUP), id)
    # Given that the group is lost and made again while its handler runs
    scene.client.call("XGROUP", "DESTROY", scene.keys.stream, GROUP)
    scene.scripts.end_at = len(scene.scripts.names) + 1
    with pytest.raises(BusUnavailable):
        scene.bus.registry.restore_partition(TOPIC, 0)
    scene.scripts.end_at = None
    # When it returns before the giving back has come so far
    lane.done(message)
    turns.settle()
    scene.bus.registry.restore_partition(TOPIC, 0)
    # Then nothing is left to do
    if (link := turns.close()) is not None:
        link.close()
    assert drain(scene, "none") == []
    assert (scene.pending(), scene.state(id)) == ([], None)


# ---------------------------------------------------------------------- moving to a mark


@pytest.mark.parametrize("ordering", ["key", "partition", "none"])
def test_a_group_is_moved_to_its_mark_in_pages_and_can_be_interrupted_before_any(
    scene: Scene, ordering: Ordering
) -> None:
    page = 0
    while True:
        scene.declare(ordering)
        ids = scene.add(2_000)
        scene.give(1_300)
        scene.fail(ids[:300:3])
        waiting = ids[:300:3]
        if ordering != "none":
            held = ids[600:900:5]
            scene.hold(held, lambda id: "*" if ordering == "partition" else hash_of((int(id[:-2]) - 1) % 5))
            waiting = [*waiting, *held]
        lease = scene.keys.lease(GROUP, "0")
        scene.client.call("SET", lease, LEASE)
        place = marks.MarkRef(TOPIC, 0, GROUP, "")
        era = scene.client.call("HGET", scene.keys.state(GROUP), "era").decode()
        scene.scripts.forget()
        scene.scripts.end_at = page
        try:
            settled = marks.advance_one(scene.bus, place, "1900-0", era, ordering, [lease])
            ended = False
        except BusUnavailable:
            ended = True
        scene.scripts.end_at = None
        if ended:
            marks.advance_one(scene.bus, place, "1900-0", era, ordering, [lease])
        assert scene.pending() == sorted(waiting, key=lambda id: int(id[:-2]))
        assert scene.lag() == 100
        assert scene.client.call("GET", scene.keys.mark(GROUP)) == b"1900-0"
        assert scene.client.call("GET", lease).startswith(b"free:advanced-worker-1")
        if not ended:
            break
        scene.client.call("UNLINK", scene.keys.stream, *scene.keys.of_group(GROUP))
        page += 1
    assert page >= 5
    assert settled == 1_300 - len(waiting) + 600
    assert max(scene.scripts.most.values()) < MOST


def test_a_group_at_its_mark_or_beyond_is_left_alone(scene: Scene) -> None:
    scene.declare()
    scene.add(50)
    scene.give(30)
    lease = scene.keys.lease(GROUP, "0")
    scene.client.call("SET", lease, LEASE)
    place = marks.MarkRef(TOPIC, 0, GROUP, "")
    era = scene.client.call("HGET", scene.keys.state(GROUP), "era").decode()
    # and one that is behind a mark of another era
    for mark, of in (("30-0", era), ("7-0", era), ("40-0", "another"), ("40-0", "")):
        assert marks.advance_one(scene.bus, place, mark, of, "key", [lease]) == 0
    assert scene.client.call("GET", lease) == LEASE.encode()
    assert len(scene.pending()) == 30


def test_the_mark_of_an_unordered_group_is_found_in_pages(scene: Scene) -> None:
    scene.declare("none")
    ids = scene.add(1_800)
    scene.give(1_500, "w.0")
    scene.fail(ids[:1_200])
    scene.scripts.forget()
    marks.note_unordered(scene.bus, scene.bus.registry.groups(TOPIC))
    assert scene.client.call("GET", scene.keys.mark(GROUP)) == ids[1_199].encode()
    assert len(scene.scripts.names) == 3
    scene.fail(ids[1_200:1_500])
    marks.note_unordered(scene.bus, scene.bus.registry.groups(TOPIC))
    assert scene.client.call("GET", scene.keys.mark(GROUP)) == ids[1_499].encode()
    assert max(scene.scripts.most.values()) < MOST


# ---------------------------------------------------------------------- removing


def test_much_is_trimmed_in_several_scripts(scene: Scene) -> None:
    scene.add(45_000)
    spec = TopicSpec(name=TOPIC, retention=timedelta(seconds=1))
    scene.client.call("XADD", scene.keys.stream, "*", "v", "new")
    scene.scripts.forget()
    assert retention.trim(scene.bus, spec) == 45_000
    assert scene.client.call("XLEN", scene.keys.stream) == 1
    assert len(scene.scripts.names) >= 3


def test_a_group_with_much_pending_is_deleted(scene: Scene) -> None:
    scene.declare()
    scene.add(2_500)
    scene.give(2_500)
    groups.delete(scene.bus, TOPIC, GROUP)
    assert scene.client.call("XINFO", "GROUPS", scene.keys.stream) == []


def test_large_delayed_messages_are_cancelled_a_few_in_one_script(scene: Scene) -> None:
    body = b"0:,1:v,200000:%b," % (b"x" * 200_000)
    for number in range(1, 11):
        scene.client.call("HSET", scene.keys.delayed_body, f"{number:016d}", body)
        scene.client.call("ZADD", scene.keys.delayed, 1, f"{number:016d}")
    own = delayed.own_keys(scene.keys)
    members = [f"{number:016d}" for number in range(1, 11)]
    assert commands.run(scene.client, "cancel", own, members) == [1, 1, *[-1] * 8]
    refs = [DelayedRef(0, number) for number in range(1, 11)]
    assert delayed.cancel(scene.bus, TOPIC, refs) == [False] * 2 + [True] * 8


# ---------------------------------------------------------------------- turns


def test_very_many_failures_are_settled_in_several_scripts(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.declare()
    ids = scene.add(450, keys=450)
    turns = scene.lane()
    lane = turns.lanes[0]
    messages: list[Message] = []
    while len(messages) < 450:
        messages += [message for _, batch in turns.take(500) for message in batch]
    for number, message in enumerate(messages):
        if number % 3 == 0:
            lane.dead(message, "no", "x" * 4000, 1)
        elif number % 3 == 1:
            lane.retry(message, 3600, "x" * 4000, 1)
        else:
            lane.done(message)
    before = scene.client.call("INFO", "commandstats")
    alone: list[Any] = []
    sound = Link.call

    def call(link: Link, *command: Any) -> Any:
        alone.append(command)
        return sound(link, *command)

    monkeypatch.setattr(Link, "call", call)
    turns.take(1)
    after = scene.client.call("INFO", "commandstats")
    assert scene.pending() == ids[1::3]
    # All but the last in a write of its own; what is still to be settled does not lie below a mark
    early = [command for command in alone if command[0] in ("EVALSHA", "EVAL")]
    assert len(early) >= 2
    assert [command[-1] for command in early[:2]] == ["", ""]
    assert scene.client.call("GET", scene.keys.mark(GROUP)) == ids[-1].encode()
    assert scene.client.call("XLEN", scene.keys.dead(GROUP)) == 150
    assert scene.client.call("ZCARD", scene.keys.retry(GROUP)) == lane.retrying == 150
    assert scripts_in(after) - scripts_in(before) >= 3
    if (link := turns.close()) is not None:
        link.close()


@pytest.mark.parametrize("last", [1, 3, 4, 5, 6])
def test_what_a_server_that_dies_between_two_portions_has_not_settled_is_done_by_the_next_owner(
    scene: Scene, last: int
) -> None:
    # Given 300 keys whose heads have been handled now, with nine messages behind each
    scene.declare()
    ids = scene.add(3_000, keys=300)
    scene.give(3_000)
    for number in range(300):
        mine = ids[number::300]
        scene.fail(mine[:1], hash=hash_of(number))
        scene.hold(mine[1:], lambda _, number=number: hash_of(number))
    heads, hashes = ids[:300], [hash_of(number) for number in range(300)]
    parts = list(portions(Outcomes(done=heads, release=hashes)))
    assert len(parts) == 6
    # When the server has run only the first scripts of those that settle them
    keys = scene.keys
    scene.client.call("SET", keys.lease(GROUP, "0"), "dead:1")
    own = [keys.stream, keys.lease(GROUP, "0"), keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP)]
    own += [keys.dead(GROUP), keys.mark(GROUP)]
    for part in parts[:last]:
        assert commands.run(scene.client, "turn", own, ["dead:1", GROUP, "0", 0, 10, part.dump(), ""])[0] == 1
    # Then the next owner does all the rest, in order, and nothing again
    handled = drain(scene)
    assert sorted(handled) == sorted(ids[min(300, 100 * last) :])
    for number in range(300):
        wanted = set(ids[number::300])
        mine = [id for id in handled if id in wanted]
        assert mine == ids[number::300][-len(mine) :]
    assert scene.pending() == []


def test_a_long_list_of_dead_letters_comes_down_to_a_smaller_limit_a_few_with_each(scene: Scene) -> None:
    scene.declare()
    ids = scene.add(4)
    scene.give(4)
    keys = scene.keys
    scene.pipe([("XADD", keys.dead(GROUP), f"{n + 1}-0", "id", "1-0") for n in range(250)])
    scene.client.call("SET", keys.lease(GROUP, "0"), LEASE)
    own = [keys.stream, keys.lease(GROUP, "0"), keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP)]
    own += [keys.dead(GROUP), keys.mark(GROUP)]
    lengths = []
    for id in ids:
        one = Outcomes(dead=[(id, "no", "no", 1, 1)]).dump()
        commands.run(scene.client, "turn", own, [LEASE, GROUP, "0", 0, 20, one, ""])
        lengths.append(scene.client.call("XLEN", keys.dead(GROUP)))
    assert lengths == [151, 52, 20, 20]
    assert scene.state("dead_dropped") == b"234"
    kept = [entry[1][1].decode() for entry in scene.client.call("XRANGE", keys.dead(GROUP), "-", "+")]
    assert kept[-4:] == ids


def test_large_messages_behind_small_ones_are_counted_a_few_at_a_time(scene: Scene) -> None:
    scene.add(50)
    large = b"x" * 200_000
    scene.pipe([("XADD", scene.keys.stream, f"{n}-0", "v", large) for n in range(51, 91)])
    scene.scripts.forget()
    groups.create(scene.bus, TOPIC, GROUP, start="20-0")
    assert scene.lag() == 70
    ran = Counter(scene.scripts.names)
    assert ran["count"] >= 10  # 256 KiB in each, and at most two more


def test_large_dead_letters_are_kept_a_few_in_one_script(scene: Scene) -> None:
    scene.declare()
    scene.add(20, b'"' + b"x" * 100_000 + b'"')
    turns = scene.lane()
    lane = turns.lanes[0]
    messages: list[Message] = []
    while len(messages) < 20:
        messages += [message for _, batch in turns.take(500) for message in batch]
    for message in messages:
        lane.dead(message, "no", "no", 1)
    before = scene.client.call("INFO", "commandstats")
    turns.settle()
    after = scene.client.call("INFO", "commandstats")
    assert scene.client.call("XLEN", scene.keys.dead(GROUP)) == 20
    assert scene.state("dead") == b"20"
    assert scene.pending() == []
    assert scripts_in(after) - scripts_in(before) >= 7
    if (link := turns.close()) is not None:
        link.close()


def scripts_in(stats: bytes) -> int:
    lines = [line for line in stats.decode().splitlines() if line.startswith(("cmdstat_eval",))]
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines)


@pytest.mark.parametrize("ordering", ["key", "none"])
@pytest.mark.parametrize("how", ["forgotten", "large"])
def test_what_is_settled_late_is_not_fetched_again(scene: Scene, ordering: Ordering, how: str) -> None:
    """The server has forgotten the script, or had to be asked twice; and is asked for what is due."""
    scene.declare(ordering)
    ids = scene.add(12, b'"' + b"x" * 100_000 + b'"', keys=12)
    scene.give(12)
    scene.fail(ids)
    turns = scene.lane(ordering)
    lane, seen = turns.lanes[0], []
    for _ in range(50):
        for message in (message for _, batch in turns.take(100) for message in batch):
            seen.append(message.id)
            lane.dead(message, "no", "no", 1) if how == "large" else lane.done(message)
        if how == "forgotten":
            due = commands.script("due")
            scene.client.call("SCRIPT", "FLUSH")
            scene.client.call("SCRIPT", "LOAD", due.text)
    turns.settle()
    if (link := turns.close()) is not None:
        link.close()
    assert sorted(seen) == sorted(ids)
    assert scene.pending() == []
    assert scene.client.call("XLEN", scene.keys.dead(GROUP)) == (12 if how == "large" else 0)


@pytest.mark.parametrize("script", ["recover", "due"])
def test_large_messages_are_fetched_a_few_in_one_script(scene: Scene, script: str) -> None:
    scene.declare()
    ids = scene.add(20, b'"' + b"x" * 100_000 + b'"')
    scene.give(20)
    if script == "due":
        scene.fail(ids)
    own = [scene.keys.stream, scene.keys.lease(GROUP, "0"), scene.keys.retry(GROUP)]
    scene.client.call("SET", scene.keys.lease(GROUP, "0"), LEASE)
    if script == "recover":
        own += [scene.keys.held(GROUP), scene.keys.state(GROUP)]
        reply = commands.run(scene.client, "recover", own, [LEASE, GROUP, "0", "-", 500, "key"])
        assert reply[2] == f"({ids[2]}".encode()
    else:
        reply = commands.run(
            scene.client, "due", [*own, scene.keys.state(GROUP)], [LEASE, GROUP, "0", 500, "0"]
        )
    assert [entry[0].decode() for entry in reply[1]] == ids[:3]
    # Then all of them are handled all the same, in their order
    assert drain(scene) == ids


def test_very_many_held_messages_of_very_many_keys_are_released_some_at_a_time(scene: Scene) -> None:
    scene.declare()
    ids = scene.add(3_000, keys=300)
    scene.give(3_000)
    for number in range(300):
        mine = ids[number::300]
        scene.fail(mine[:1], hash=hash_of(number))
        scene.hold(mine[1:], lambda _, number=number: hash_of(number))
    handled = drain(scene)
    assert sorted(handled) == sorted(ids)
    for number in range(300):
        wanted = set(ids[number::300])
        assert [id for id in handled if id in wanted] == ids[number::300]
