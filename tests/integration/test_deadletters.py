"""Dead letters on real servers: retried for one group alone, discarded, and never in two places."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bus.client import Bus
from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.turn import Turns
from bus.errors import ConfigurationError, ReadOnly, UnknownGroup, UnknownTopic
from bus.format.lane_id import LaneId
from bus.models import AuditRecord
from bus.operating import deadletters, fates, operate, pending
from bus.operating.deadletters import Origin, Selection
from bus.operating.fates import LetterRef
from bus.streams.commands import run
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.values import Message, Ordering, TopicSpec
from tests.servers import redis7_server, valkey_server
from tests.waiting import wait_until

TOPIC, GROUP, OTHER = "orders", "stock", "ledger"
ADA = operate.Actor("cli", "ada")
LEASE = "worker:1"

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.both_servers]


#: Slices that a test has begun, to be ended after it.
OPEN: list[Turns] = []


@pytest.fixture(autouse=True)
def _end_slices() -> Iterator[None]:
    yield
    while OPEN:
        if (link := OPEN.pop().close()) is not None:
            link.close()


class Scene:
    """A bus with two groups, and a stand-in for the slice of one of them."""

    def __init__(self, bus: Bus, ordering: Ordering = "key", partitions: int = 1) -> None:
        self.bus = bus
        self.ordering: Ordering = ordering
        bus.registry.project([TopicSpec(name=TOPIC, partitions=partitions)])
        bus.registry.declare_groups(
            [GroupSpec(topic=TOPIC, name=name, ordering=ordering) for name in (GROUP, OTHER)]
        )
        self.keys = bus.keys.partition(TOPIC, 0)

    def lane(self, group: str = GROUP, name: str = "0", lease: str = LEASE) -> Turns:
        """Own a lane and begin a slice on it."""
        keys = self.bus.keys.partition(TOPIC, 0)
        self.bus.client.call("SET", keys.lease(group, name), lease)
        lane = Lane(LaneState(LaneId(TOPIC, 0, group, name), lease, self.ordering), keys)
        turns = Turns(self.bus.endpoint, [lane], held_limit=1000, dead_limit=1000)
        turns.open()
        OPEN.append(turns)
        return turns

    def kill(self, count: int = 1, key: str | None = "a", group: str = GROUP) -> list[str]:
        """Publish messages that this group gives up on at once; their ids."""
        ids = [self.bus.publish(TOPIC, {"n": n}, key=key, headers={"tenant": "de"}).id for n in range(count)]
        turns = self.lane(group)
        for message in drain(turns, keep=True):
            turns.lanes[0].dead(message, f"ValueError: no {message.value['n']}", "Traceback: x", 1)
        turns.settle()
        self.bus.client.call("SET", self.keys.lease(group, "0"), "free:worker-1")
        return ids

    def letters(self, **which: Any) -> list[deadletters.DeadLetter]:
        return list(deadletters.find(self.bus, TOPIC, GROUP, Selection(**which)))

    def retry(self, **which: Any) -> fates.Tally:
        return operate.retry_dead_letters(self.bus, TOPIC, GROUP, Selection(**which), actor=ADA)

    def given(self, group: str = GROUP) -> list[tuple[str, int]]:
        """What a worker that takes the lane is given now, with the attempt; all of it is settled."""
        turns = self.lane(group, lease=f"worker:{id(object())}")
        return [(message.id, message.attempt) for message in drain(turns)]

    def pending(self, group: str = GROUP) -> int:
        return int(self.bus.client.call("XPENDING", self.keys.stream, group)[0])

    def lease(self, name: str = "0") -> str | None:
        value = self.bus.client.call("GET", self.keys.lease(GROUP, name))
        return None if value is None else value.decode()


def drain(turns: Turns, *, keep: bool = False) -> list[Message]:
    """Take all there is, as a slice does; settle it unless it is kept."""
    found: list[Message] = []
    lane, empty = turns.lanes[0], 0
    while empty < 2:  # a turn that only looks for retries that are due fetches nothing new
        messages = [message for _, batch in turns.take(100) for message in batch]
        for message in messages:
            if lane.must_wait(message):
                lane.hold(message)
            else:
                found.append(message)
                if not keep:
                    lane.done(message)
        due = turns.due_in()  # what was just released is due a millisecond later
        empty = 0 if messages or lane.recovering or (due is not None and due < 1) else empty + 1
    turns.settle()
    return found


@pytest.fixture
def scene(bus: Bus) -> Scene:
    return Scene(bus)


# ---------------------------------------------------------------------- looking


def test_a_letter_holds_the_message_and_all_about_its_end(scene: Scene) -> None:
    [message_id] = scene.kill()

    [letter] = scene.letters()

    assert (letter.message.id, letter.message.partition) == (message_id, 0)
    assert (letter.message.value, letter.message.key) == ({"n": 0}, "a")
    assert dict(letter.message.headers) == {"tenant": "de"}
    assert (letter.reason, letter.error, letter.attempts) == ("ValueError: no 0", "Traceback: x", 1)
    assert letter.first == datetime.fromtimestamp(0.001, UTC)
    assert letter.last is not None
    assert abs(letter.last - datetime.now(UTC)) < timedelta(minutes=5)
    assert deadletters.get(scene.bus, TOPIC, GROUP, Origin.parse(str(letter.place))) is not None


def test_letters_are_found_by_partition_key_reason_and_time(bus: Bus) -> None:
    scene = Scene(bus, partitions=2)
    here = next(key for key in map(str, range(99)) if bus.publish(TOPIC, 0, key=key).partition == 0)
    drain(scene.lane())
    scene.kill(3, key=here)
    letters = scene.letters()

    assert [one.message.value["n"] for one in scene.letters(reason="ERROR: NO 1")] == [1]
    assert len(scene.letters(key=here, partition=0)) == 3
    assert scene.letters(key="nobody's") == scene.letters(partition=1) == []
    assert scene.letters(since=datetime.now(UTC) + timedelta(hours=1)) == []
    assert len(scene.letters(since=datetime.now(UTC) - timedelta(hours=1))) == 3
    assert [one.place for one in scene.letters(places=(letters[1].place,))] == [letters[1].place]
    newest = list(deadletters.find(bus, TOPIC, GROUP, newest_first=True))
    assert [one.place for one in newest] == [one.place for one in reversed(letters)]
    older = deadletters.find(bus, TOPIC, GROUP, Selection(before=newest[0].place), newest_first=True)
    assert [one.place for one in older] == [one.place for one in newest[1:]]


def test_what_does_not_exist_is_said_at_once(scene: Scene) -> None:
    with pytest.raises(UnknownTopic):
        deadletters.find(scene.bus, "wages", GROUP)
    with pytest.raises(UnknownGroup):
        deadletters.find(scene.bus, TOPIC, "nobody")
    with pytest.raises(ConfigurationError, match="partitions 0 to 0"):
        deadletters.find(scene.bus, TOPIC, GROUP, Selection(partition=7))
    for wrong in ("1700-0", "3/", "x/1-1", "3/1700", f"3/{2**64}-0"):
        with pytest.raises(ConfigurationError, match="3/1700-0"):
            Origin.parse(wrong)


def test_letters_beyond_the_limit_are_counted(scene: Scene) -> None:
    turns = scene.lane()
    turns.dead_limit = 2
    for n in range(5):
        scene.bus.publish(TOPIC, n)
    for message in drain(turns, keep=True):
        turns.lanes[0].dead(message, "no", "no", 1)
    turns.settle()

    assert deadletters.count(scene.bus, TOPIC, GROUP) == deadletters.Count(kept=2, dropped=3)


# ---------------------------------------------------------------------- retry


@pytest.mark.parametrize("ordering", ["key", "partition", "none"])
def test_a_retried_message_is_given_to_its_group_again_as_new_and_to_no_other(
    bus: Bus, ordering: Ordering
) -> None:
    scene = Scene(bus, ordering)
    ids = scene.kill(3)
    scene.given(OTHER)

    tally = scene.retry()

    assert (tally.waiting, tally.total) == (3, 3)
    assert scene.letters() == []
    assert scene.pending() == 3
    assert scene.given() == [(message_id, 1) for message_id in ids]
    assert scene.given(OTHER) == []
    assert scene.given() == []
    assert scene.pending() == 0
    assert bus.client.call("EXISTS", scene.keys.retry(GROUP), scene.keys.held(GROUP)) == 0


@pytest.mark.parametrize("ordering", ["key", "partition", "none"])
def test_a_trimmed_message_comes_from_the_kept_copy_and_other_groups_settle_it_unhandled(
    bus: Bus, ordering: Ordering
) -> None:
    scene = Scene(bus, ordering)
    scene.kill(2)
    scene.given(OTHER)
    bus.client.call("XTRIM", scene.keys.stream, "MAXLEN", 0)

    tally = scene.retry()

    assert (tally.copied, tally.total) == (2, 2)
    turns = scene.lane()
    messages = drain(turns)
    assert [(one.value, one.key, dict(one.headers)) for one in messages] == [
        ({"n": n}, "a", {"tenant": "de"}) for n in range(2)
    ]
    assert scene.given(OTHER) == []
    assert scene.pending(OTHER) == 0
    assert bus.client.call("XLEN", scene.keys.stream) == 2


@pytest.mark.parametrize(
    "fields",
    [
        ["v", "1"],
        ["v", "1", "k", "a"],
        ["v", "1", "g", "nobody"],
        ["v", "1", "g", "nobody", "k", "a"],
        ["v", "1", "k", "a", "e", "json", "g", "nobody"],
        ["rubbish", ""],
    ],
)
def test_a_copy_is_for_its_group_alone_whatever_fields_the_message_had(scene: Scene, fields: Any) -> None:
    # Given a dead letter of a message with so few fields, or with a field that only a copy has
    scene.bus.client.call("XADD", scene.keys.stream, "1-0", *fields)
    scene.bus.client.call(
        "XADD", scene.keys.dead(GROUP), "*", "id", "1-0", "reason", "x", "attempts", 1, *fields
    )
    scene.bus.client.call("XTRIM", scene.keys.stream, "MAXLEN", 0)
    # When it is retried
    assert scene.retry().copied == 1
    # Then its own group is given it, and the others settle it unhandled
    [(id, _)] = scene.bus.client.call("XRANGE", scene.keys.stream, "-", "+")
    assert scene.given(OTHER) == []
    assert scene.pending(OTHER) == 0
    assert scene.given() == [(id.decode(), 1)]


@pytest.mark.parametrize("ordering", ["key", "partition", "none"])
@pytest.mark.parametrize("fields", [["v", "1"], ["v", "1", "k", "a"], ["v", "1", "h", '{"t":"x"}']])
def test_a_copy_that_an_older_version_made_is_for_its_group_alone(
    bus: Bus, ordering: Ordering, fields: list[str]
) -> None:
    # Given copies as older versions made them: of a message without key and headers just four fields
    scene = Scene(bus, ordering)
    call = scene.bus.client.call
    copy = call("XADD", scene.keys.stream, "*", *fields, "g", GROUP).decode()
    between = call("XADD", scene.keys.stream, "*", "v", "2", "k", "a").decode()
    # Then its own group is given it, and the others settle it unhandled: as new …
    assert scene.given() == [(copy, 1), (between, 1)]
    assert scene.given(OTHER) == [(between, 1)]
    assert (scene.pending(), scene.pending(OTHER)) == (0, 0)
    # … as what another worker left over …
    call("XGROUP", "SETID", scene.keys.stream, OTHER, "0")
    call("XREADGROUP", "GROUP", OTHER, "0", "STREAMS", scene.keys.stream, ">")
    assert scene.given(OTHER) == [(between, 1)]
    # … and as one that was tried again, in a group to which an older worker gave it
    call("XCLAIM", scene.keys.stream, OTHER, "0", 0, copy, "FORCE", "JUSTID")
    call("HSET", scene.keys.state(OTHER), copy, '{"k":"","a":1}')
    call("ZADD", scene.keys.retry(OTHER), 1, copy)
    assert scene.given(OTHER) == []
    assert scene.pending(OTHER) == 0
    assert call("EXISTS", scene.keys.retry(OTHER)) == 0
    assert call("HEXISTS", scene.keys.state(OTHER), copy) == 0


@pytest.mark.parametrize("kept", [True, False])
def test_large_dead_letters_are_retried_a_few_in_one_script(scene: Scene, kept: bool) -> None:
    # Given 20 dead letters of 100,000 bytes, whose messages are still there or not
    ids = [scene.bus.publish(TOPIC, b"x" * 100_000, key="a").id for _ in range(20)]
    turns = scene.lane()
    for message in drain(turns, keep=True):
        turns.lanes[0].dead(message, "too large", "too large", 1)
    turns.settle()
    if not kept:
        scene.bus.client.call("XTRIM", scene.keys.stream, "MAXLEN", 0)
    places = [letter.place for letter in scene.letters()]
    # When one script is asked to retry them all
    keys = scene.keys
    names = [keys.stream, keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP), keys.dead(GROUP)]
    codes = run(scene.bus.client, "redrive", [*names, keys.lease(GROUP, "0")],
                [GROUP, "key", "free:x", 1, "0", *(place.id for place in places)])  # fmt: skip
    # Then it takes a few and leaves the rest, which the verb then comes to
    assert codes == [1 if kept else 2] * 3 + [-2] * 17
    assert scene.retry().retried == 17
    assert scene.letters() == []
    assert len(scene.given()) == len(ids)


def test_a_letter_that_names_no_message_stops_no_other(scene: Scene) -> None:
    [id] = scene.kill()
    for named in ("rubbish", "18446744073709551616-0", ""):
        scene.bus.client.call("XADD", scene.keys.dead(GROUP), "*", "id", named, "reason", "x", "v", 1)
    letters = [LetterRef(Origin(0, raw.decode()), "", "") for raw, _ in
               scene.bus.client.call("XRANGE", scene.keys.dead(GROUP), "-", "+")]  # fmt: skip
    outcome = fates.retry(scene.bus, TOPIC, GROUP, letters)
    assert [fate.name for fate in outcome] == ["WAITING", "COPIED", "COPIED", "COPIED"]
    assert (id, 1) in scene.given()


def test_a_copy_that_dies_again_is_retried_for_the_same_group(scene: Scene) -> None:
    scene.kill()
    scene.bus.client.call("XTRIM", scene.keys.stream, "MAXLEN", 0)
    scene.retry()
    for _ in range(2):
        turns = scene.lane()
        for message in drain(turns, keep=True):
            turns.lanes[0].dead(message, "again", "again", 1)
        turns.settle()
        scene.bus.client.call("XTRIM", scene.keys.stream, "MAXLEN", 0)
        assert scene.retry().copied == 1

    entries = scene.bus.client.call("XRANGE", scene.keys.stream, "-", "+")
    assert [entry[1][-2:] for entry in entries] == [[b"g", GROUP.encode()]]
    assert [entry[1].count(b"g") for entry in entries] == [1]


def test_a_retried_message_waits_behind_a_failing_one_of_its_key_only(scene: Scene) -> None:
    # Given a dead letter, and a later message of its key that fails now and is due in an hour
    [dead] = scene.kill()
    scene.bus.publish(TOPIC, "fails", key="a")
    turns = scene.lane()
    [failing] = drain(turns, keep=True)
    turns.lanes[0].retry(failing, 3600, "not yet", 1)
    turns.settle()

    # When it is retried, then it runs: it is the older one
    scene.retry()
    waiting = scene.bus.publish(TOPIC, "waits", key="a").id
    assert scene.given() == [(dead, 1)]

    # And what came after the failing one still waits for that
    listed = {one.message.id: one.state for one in pending.find(scene.bus, TOPIC, GROUP)}
    assert listed == {failing.id: "retrying", waiting: "held back"}
    scene.bus.client.call("ZADD", scene.keys.retry(GROUP), 0, failing.id)
    assert [message_id for message_id, _ in scene.given()] == [failing.id, waiting]


def test_letters_of_one_key_keep_their_order_among_each_other(scene: Scene) -> None:
    ids = scene.kill(250)
    scene.retry()
    assert [message_id for message_id, _ in scene.given()] == ids


@pytest.mark.parametrize("ordering", ["key", "none"])
def test_an_idle_lane_is_freed_so_that_its_worker_looks_again(bus: Bus, ordering: Ordering) -> None:
    scene = Scene(bus, ordering)
    scene.kill()
    name = "0" if ordering == "key" else "worker.0"
    bus.client.call("HSET", bus.keys.workers, "worker", '{"processes": 2}')
    drain(scene.lane(name=name))

    scene.retry()

    lease = scene.lease(name)
    assert lease is None if ordering == "none" else lease is not None and lease.startswith("free:operator-")


@pytest.mark.parametrize("ordering", ["key", "none"])
def test_a_lane_at_work_keeps_its_lease_and_finds_the_message_at_its_next_turn(
    bus: Bus, ordering: Ordering
) -> None:
    # Given a slice in the middle of a message
    scene = Scene(bus, ordering)
    [dead] = scene.kill()
    running = bus.publish(TOPIC, "long", key="b").id
    name = "0" if ordering == "key" else "worker.0"
    turns = scene.lane(name=name)
    lane = turns.lanes[0]
    [message] = drain(turns, keep=True)

    # When a dead letter is retried, then the slice settles what it handled, and goes on with that
    scene.retry()
    assert scene.lease(name) == LEASE
    lane.done(message)
    assert [(one.id, one.attempt) for one in drain(turns)] == [(dead, 1)]
    assert message.id == running
    assert scene.pending() == 0


@pytest.mark.parametrize("ordering", ["key", "none"])
def test_a_retry_that_runs_just_now_is_in_hand_too(bus: Bus, ordering: Ordering) -> None:
    # Given a slice in the middle of a message that failed before
    scene = Scene(bus, ordering)
    [dead] = scene.kill()
    bus.publish(TOPIC, "fails once", key="b")
    name = "0" if ordering == "key" else "worker.0"
    turns = scene.lane(name=name)
    [failing] = drain(turns, keep=True)
    turns.lanes[0].retry(failing, 0, "once", 1)
    turns.settle()
    turns = scene.lane(name=name)
    [running] = (message for _ in range(3) for _, batch in turns.take(1) for message in batch)

    scene.retry()

    assert (running.id, running.attempt, scene.lease(name)) == (failing.id, 2, LEASE)
    turns.lanes[0].done(running)
    assert [one.id for one in drain(turns)] == [dead]


def test_a_lane_between_two_slices_finds_it_when_the_next_begins(scene: Scene) -> None:
    # Given a slice that was cut short with a message in hand, and keeps what it knows for the next
    [dead] = scene.kill()
    running = scene.bus.publish(TOPIC, "left over", key="b").id
    turns = scene.lane()
    drain(turns, keep=True)
    turns.close().close()

    scene.retry()

    turns.lanes[0].start_recovery()
    turns.open()
    assert sorted(one.id for one in drain(turns)) == sorted([dead, running])


def test_of_two_who_retry_at_once_each_message_is_given_back_once(scene: Scene) -> None:
    ids = scene.kill(200)
    tallies: list[fates.Tally] = []
    refs = [LetterRef(one.place, one.message.id, one.reason) for one in scene.letters()]
    barrier = threading.Barrier(2)

    def work() -> None:
        barrier.wait(20)
        tally = fates.Tally()
        tally.add_all(fates.retry(scene.bus, TOPIC, GROUP, refs))
        tallies.append(tally)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sum(tally.waiting for tally in tallies) == sum(tally.gone for tally in tallies) == 200
    assert [message_id for message_id, _ in scene.given()] == ids


def test_a_letter_whose_message_is_pending_or_comes_anyway_only_goes(scene: Scene) -> None:
    # Given letters of messages that the group was moved back before: one is pending again, one not yet given
    first, second = scene.kill(2)
    scene.bus.client.call("XGROUP", "SETID", scene.keys.stream, GROUP, "0-0", "ENTRIESREAD", 0)
    turns = scene.lane()
    turns.take(1)
    turns.take(1)
    assert scene.pending() == 1
    turns.close().close()

    assert scene.retry().waiting == 2

    assert scene.letters() == []
    assert [message_id for message_id, _ in scene.given()] == [first, second]
    assert scene.given() == []


def test_without_its_group_in_redis_a_letter_stays(scene: Scene) -> None:
    scene.kill(2)
    scene.bus.client.call("XGROUP", "DESTROY", scene.keys.stream, GROUP)
    assert (scene.retry().kept, len(scene.letters())) == (2, 2)

    scene.bus.registry.forget_group(TOPIC, GROUP)
    assert (scene.retry().kept, len(scene.letters())) == (2, 2)

    gone = Origin.parse("0/1-1")
    assert scene.retry(places=(gone,)).gone == 1


def test_a_letter_without_a_message_stays_if_the_original_is_gone_too(scene: Scene) -> None:
    scene.bus.client.call("XADD", scene.keys.dead(GROUP), "*", "id", "5-0", "reason", "no")

    assert scene.retry().kept == 1
    assert len(scene.letters()) == 1


def test_a_message_with_fields_named_like_ours_comes_back_as_it_was(scene: Scene) -> None:
    scene.bus.client.call("XADD", scene.keys.stream, "*", "id", "7", "v", "1", "reason", "r")
    turns = scene.lane()
    for message in drain(turns, keep=True):
        turns.lanes[0].dead(message, "odd", "odd", 1)
    turns.settle()
    scene.bus.client.call("XTRIM", scene.keys.stream, "MAXLEN", 0)
    [letter] = scene.letters()
    assert letter.message.raw == {b"id": b"7", b"v": b"1", b"reason": b"r"}

    assert scene.retry().copied == 1

    [entry] = scene.bus.client.call("XRANGE", scene.keys.stream, "-", "+")
    assert entry[1] == [b"id", b"7", b"v", b"1", b"reason", b"r", b"g", GROUP.encode()]


def test_retry_and_discard_work_while_memory_is_full(small_server: EmbeddedServer, prefix: str) -> None:
    bus = Bus(small_server.url, prefix=prefix)
    scene = Scene(bus)
    ids = scene.kill(3)
    bus.client.call("CONFIG", "SET", "maxmemory", 1)

    kept, trimmed, dropped = scene.letters()
    assert scene.retry(places=(kept.place,)).waiting == 1
    bus.client.call("XTRIM", scene.keys.stream, "MINID", ids[2])
    assert scene.retry(places=(trimmed.place,)).copied == 1
    tally = operate.discard_dead_letters(bus, TOPIC, GROUP, Selection(places=(dropped.place,)), actor=ADA)

    assert tally.discarded == 1
    assert scene.letters() == []
    bus.close()


@pytest.fixture(params=[valkey_server, redis7_server], ids=["valkey", "redis7"])
def small_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of each family, which the test may fill."""
    with request.param(tmp_path / "own") as own:
        yield own


# ---------------------------------------------------------------------- discard, audit


def test_discarded_letters_are_gone_and_the_record_keeps_ids_and_reasons_but_no_value(scene: Scene) -> None:
    ids = scene.kill(2)
    places = [str(one.place) for one in scene.letters()]

    tally = operate.discard_dead_letters(scene.bus, TOPIC, GROUP, Selection(reason="no 1"), actor=ADA)

    assert tally.discarded == 1
    assert [one.message.id for one in scene.letters()] == ids[:1]
    record = AuditRecord.objects.get()
    assert (record.verb, record.who, record.topic, record.group) == (
        "discard dead letters",
        "ada",
        TOPIC,
        GROUP,
    )
    assert record.detail == {
        "letters": [
            {"letter": places[1], "message": ids[1], "reason": "ValueError: no 1", "outcome": "discarded"}
        ]
    }
    assert scene.given() == []


def test_each_batch_leaves_a_record_and_tells_how_far_it_is(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fates, "LETTERS_A_RECORD", 2)
    scene.kill(5)
    told: list[int] = []

    operate.retry_dead_letters(scene.bus, TOPIC, GROUP, Selection(), actor=ADA, tell=told.append)

    assert told == [2, 4, 5]
    assert [len(record.detail["letters"]) for record in AuditRecord.objects.order_by("pk")] == [2, 2, 1]


def test_a_read_only_project_refuses_both_and_records_that(scene: Scene, bus: Bus) -> None:
    scene.kill()
    frozen = Bus(bus.settings.url, prefix=bus.settings.prefix, read_only=True)

    for verb in (operate.retry_dead_letters, operate.discard_dead_letters):
        with pytest.raises(ReadOnly):
            verb(frozen, TOPIC, GROUP, Selection(), actor=ADA)

    assert len(scene.letters()) == 1
    assert list(AuditRecord.objects.values_list("outcome", flat=True)) == ["failed", "failed"]
    frozen.close()


def test_what_dies_after_the_count_is_left_alone(scene: Scene) -> None:
    scene.kill()
    counted = Selection(until=scene.letters()[0].last)
    wait_until(lambda: server_ms(scene.bus) > int(scene.letters()[0].place.id.partition("-")[0]))
    scene.kill()

    assert operate.retry_dead_letters(scene.bus, TOPIC, GROUP, counted, actor=ADA).total == 1
    assert len(scene.letters()) == 1


def server_ms(bus: Bus) -> int:
    seconds, micros = bus.client.call("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


# ---------------------------------------------------------------------- pending


def test_the_pending_list_says_what_each_message_waits_for(scene: Scene) -> None:
    for key in ("a", "a", "b"):
        scene.bus.publish(TOPIC, {"of": key}, key=key)
    turns = scene.lane()
    fails, later, running = (one for _, batch in [*turns.take(9), *turns.take(9)] for one in batch)
    turns.lanes[0].retry(fails, 60, "ValueError: no", turns.server_now())
    turns.lanes[0].hold(later)
    turns.settle()

    found = {one.message.id: one for one in pending.find(scene.bus, TOPIC, GROUP, partition=0)}

    assert [found[one.id].state for one in (fails, later, running)] == ["retrying", "held back", "in hand"]
    retrying = found[fails.id]
    assert (retrying.attempts, retrying.error, retrying.lane) == (1, "ValueError: no", "0")
    assert retrying.due is not None
    assert timedelta(0) < retrying.due - datetime.now(UTC) < timedelta(minutes=2)
    assert found[running.id].due is None
    assert timedelta(0) <= retrying.age < timedelta(minutes=5)
    scene.bus.client.call("XTRIM", scene.keys.stream, "MAXLEN", 0)
    assert {one.state for one in pending.find(scene.bus, TOPIC, GROUP)} == {"trimmed"}


def test_the_pending_list_of_what_does_not_exist_is_an_error(scene: Scene) -> None:
    with pytest.raises(UnknownTopic):
        pending.find(scene.bus, "wages", GROUP)
    with pytest.raises(UnknownGroup):
        pending.find(scene.bus, TOPIC, "nobody")
    with pytest.raises(ConfigurationError):
        pending.find(scene.bus, TOPIC, GROUP, partition=1)
    scene.bus.client.call("XGROUP", "DESTROY", scene.keys.stream, GROUP)
    assert list(pending.find(scene.bus, TOPIC, GROUP)) == []
