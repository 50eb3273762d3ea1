"""What somebody else has written into Redis: it harms only itself, is told of, and can be removed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import orjson
import pytest
from django.test import Client

from bus import doctor
from bus.cli.audited import Audited
from bus.client import Bus
from bus.doctor import Finding
from bus.errors import ConfigurationError, ForeignData, PartitionFull
from bus.format.keys import TYPES
from bus.format.lane_id import LaneId
from bus.format.records import GroupSpec
from bus.streams import commands
from bus.streams.embedded import EmbeddedServer
from bus.upkeep import retention
from bus.values import TopicSpec
from tests.integration import strange
from tests.integration.strange import GROUPS, SICK, WELL, World
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
TYPE_JUNK = {
    "string": ["SET", "{key}", "junk"],
    "list": ["RPUSH", "{key}", "junk"],
    "set": ["SADD", "{key}", "junk"],
    "hash": ["HSET", "{key}", "junk", "junk"],
    "zset": ["ZADD", "{key}", "0", "junk"],
    "stream": ["XADD", "{key}", "*", "junk", "junk"],
}


@pytest.fixture
def world(
    server: EmbeddedServer, prefix: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    with strange.consumed(server, prefix, settings, monkeypatch) as world:
        yield world


def findings(bus: Bus, check: str = "foreign") -> list[Finding]:
    return [finding for finding in doctor.examine(bus) if finding.check == check and finding.level != "ok"]


def told(bus: Bus) -> str:
    """What doctor says is wrong, whichever of its checks."""
    return " ".join(finding.text for finding in doctor.examine(bus) if finding.level != "ok")


def test_every_key_that_can_be_named_has_a_type() -> None:
    bus = Bus("redis://localhost:1")

    assert strange.every_key(bus, "orders", 0, "g").keys() == TYPES.keys()


# ---------------------------------------------------------------------- messages

UNDECODABLE: dict[str, list[Any]] = {
    "a group that none can be named": ["v", "1", "k", "a", "g", b"\xff"],
    "no value": ["x", "1"],
    "a value that is no JSON": ["v", b"\xff\xfe{"],
    "a key that is no text": ["v", "1", "k", b"\xff"],
    "headers that are no object": ["v", "1", "h", "[1]"],
    "headers that are no text": ["v", "1", "h", b"\xff"],
    "headers of numbers": ["v", "1", "k", "a", "h", '{"a": 1}'],
    "an encoding that nobody knows, and no JSON": ["v", "{", "e", b"\xff"],
    "a thousand fields": [part for n in range(1000) for part in (f"f{n}", "x")],
    "names that are no text": [b"\xff\x00", b"\xff" * 1000],
}


@pytest.mark.parametrize("fields", UNDECODABLE.values(), ids=UNDECODABLE.keys())
def test_a_message_that_cannot_be_read_is_a_dead_letter_at_once_and_the_partition_goes_on(
    world: World, fields: list[Any]
) -> None:
    stream = world.bus.keys.partition(SICK, 0).stream

    world.bus.client.call("XADD", stream, "NOMKSTREAM", "*", *fields)

    world.assert_goes_on(SICK)
    for group in GROUPS:
        wait_until(
            lambda group=group: (
                world.bus.client.call("XLEN", world.bus.keys.partition(SICK, 0).dead(group)) == 1
            ),
            what=f"a dead letter of {group}",
        )


# ---------------------------------------------------------------------- fields and members

FIELDS: dict[str, tuple[str, list[Any]]] = {
    "a failure that is no JSON": ("state", ["HSET", "{key}", "5-5", b"\xff"]),
    "a failure of wrong types": ("state", ["HSET", "{key}", "5-5", '{"k": 1, "a": "x"}']),
    "a name that begins like an id": ("state", ["HSET", "{key}", b"5\xff", "x"]),
    "an id beyond 64 bits": ("state", ["HSET", "{key}", "99999999999999999999-0", '{"k":"","a":1}']),
    "a suspect that is no id": ("state", ["HSET", "{key}", "suspect:0", b"\xff"]),
    "an era that is no token": ("state", ["HSET", "{key}", "era", b"\xff" * 500]),
    "counters that are no numbers": (
        "state", ["HSET", "{key}", "dead", "x", "dead_dropped", b"\xff", "trimmed", "1e5"],
    ),
    "a counter at its end": ("state", ["HSET", "{key}", "dead", str(2**63 - 1)]),
    "a retry that is no id": ("retry", ["ZADD", "{key}", "0", b"\xff"]),
    "retries in infinity": ("retry", ["ZADD", "{key}", "-inf", "a", "inf", "b", "1e300", "c"]),
    "a thousand retries that are no ids": (
        "retry", ["ZADD", "{key}", *[part for n in range(1000) for part in ("0", f"junk{n}")]],
    ),
    "held that is no id": ("held", ["ZADD", "{key}", "0", b"\xff"]),
    "held with scores": ("held", ["ZADD", "{key}", "5", "aaa", "-5", "zzz"]),
    "a mark that is no id": ("mark", ["SET", "{key}", b"\xff"]),
    "a dead letter with nothing in it": ("dead", ["XADD", "{key}", "*", "x", b"\xff"]),
    "a dead letter with wrong types": (
        "dead",
        ["XADD", "{key}", "*", "id", b"\xff", "attempts", "x", "first", "inf", "last", "nan", "v", "1"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "command"), FIELDS.values(), ids=FIELDS.keys())
def test_a_field_that_cannot_be_read_is_passed_over(
    world: World, admin_client: Client, name: str, command: list[Any], capsys: Any
) -> None:
    for group in GROUPS:
        key = strange.every_key(world.bus, SICK, 0, group)[name]
        world.bus.client.call(*[key if part == "{key}" else part for part in command])

    # a message that fails, one that becomes a dead letter, and those behind them go through all there is
    world.assert_goes_on(SICK)
    world.assert_goes_on(SICK, fail=1)
    world.publish(SICK, fail=9)
    world.assert_goes_on(SICK)
    for group in GROUPS:
        strange.assert_pages_answer(admin_client, SICK, group)
        strange.assert_commands_answer(world.bus, Audited, SICK, group)
    key = strange.every_key(world.bus, SICK, 0, "keyed")[name]
    # A letter is one whatever it says, a count is a count, and a mark is written anew by the next turn.
    assert key in told(world.bus) or name in ("dead", "mark") or str(2**63 - 1) in command


def test_a_group_that_was_lost_is_made_again_also_with_junk_among_what_it_had(world: World) -> None:
    for group in GROUPS:
        keys = world.bus.keys.partition(SICK, 0)
        world.bus.client.call("SET", keys.mark(group), "junk")
        world.bus.client.call("ZADD", keys.retry(group), 0, "junk", 0, "99999999999999999999-1")
        world.bus.client.call("ZADD", keys.held(group), 0, "junk", 0, "junk:junk")
        world.bus.client.call("XGROUP", "DESTROY", keys.stream, group)

    world.assert_goes_on(SICK)


def test_messages_behind_a_failing_one_are_released_although_somebody_has_put_scores_among_them(
    world: World,
) -> None:
    # Given a stranger that sorts behind all that are held, and before them by its text
    for group in GROUPS:
        key = world.bus.keys.partition(SICK, 0).held(group)
        world.bus.client.call("ZADD", key, 1000, "!", -1000, "~")

    # Then messages that wait behind a failing head come out all the same
    world.assert_goes_on(SICK, fail=2)


# ---------------------------------------------------------------------- keys of another type


@pytest.mark.parametrize("kind", ["string", "list"])
@pytest.mark.parametrize("name", ["stream", "retry", "held", "state", "mark", "dead", "delayed", "ahead"])
def test_a_key_of_another_type_stops_its_partition_alone_until_it_is_removed(
    world: World, admin_client: Client, caplog: pytest.LogCaptureFixture, name: str, kind: str
) -> None:
    caplog.set_level(logging.WARNING)
    if TYPES[name] == kind:
        kind = "hash"
    keys = {group: strange.every_key(world.bus, SICK, 0, group)[name] for group in GROUPS}
    for key in set(keys.values()):
        world.bus.client.call("DEL", key)
        world.bus.client.call(*[key if part == "{key}" else part for part in TYPE_JUNK[kind]])

    # The neighbour goes on, and so does the other partition
    world.assert_goes_on(WELL)
    world.assert_goes_on(WELL, fail=1)
    # it is told of,
    assert keys["keyed"] in told(world.bus)
    for group in GROUPS:
        strange.assert_pages_answer(admin_client, SICK, group)
        strange.assert_pages_answer(admin_client, WELL, group)
        strange.assert_commands_answer(world.bus, Audited, SICK, group)
    if name == "stream":
        assert keys["keyed"] in caplog.text
    # and when it is removed all goes on by itself.
    for key in set(keys.values()):
        world.bus.client.call("DEL", key)
    world.assert_goes_on(SICK)
    world.assert_goes_on(SICK, fail=1)
    assert not findings(world.bus)


@pytest.mark.parametrize("name", ["topics", "groups", "control", "meta"])
def test_a_table_of_another_type_stops_nobody(world: World, admin_client: Client, name: str) -> None:
    key = strange.every_key(world.bus, SICK, 0, "keyed")[name]
    world.bus.client.call("DEL", key)
    world.bus.client.call("SET", key, "junk")

    world.assert_goes_on(WELL)
    world.assert_goes_on(WELL, fail=1)
    assert key in " ".join(finding.text for finding in doctor.examine(world.bus) if finding.level != "ok")
    strange.assert_pages_answer(admin_client, WELL, "keyed")
    strange.assert_commands_answer(world.bus, Audited, WELL, "keyed")

    world.bus.client.call("DEL", key)
    world.bus.registry.forget_cache()
    world.assert_goes_on(SICK)
    wait_until(lambda: not findings(world.bus), what="nothing strange to be left")


# ---------------------------------------------------------------------- records

RECORDS = [b"", b"\xff", b"junk", b"{", b"[]", b"null", b"{}", b"1e999"]
#: Of wrong types, by the table that they stand in.
WRONG = {
    "topics": [
        b'{"partitions": "x"}', b'{"partitions": true}', b'{"partitions": 1e300}', b'{"partitions": 0}',
        b'{"partitions": 2, "retention": 1e300}', b'{"partitions": 2, "retention": -1}',
    ],
    "groups": [
        b'{"ordering": 1}', b'{"ordering": "key", "start": {}}', b'{"ordering": "key", "start": "whenever"}',
        b'{"ordering": "key", "start": "latest", "paused": 1}',
        b'{"ordering": "key", "start": "latest", "born": "a name that is far too long"}',
    ],
}  # fmt: skip
STRANGE = [(name, raw) for name, wrong in WRONG.items() for raw in [*RECORDS, *wrong]]


@pytest.mark.parametrize(("name", "raw"), STRANGE)
def test_a_record_that_cannot_be_read_is_shown_as_such_and_mended_by_what_declares_it(
    world: World, admin_client: Client, caplog: pytest.LogCaptureFixture, name: str, raw: bytes
) -> None:
    field = SICK if name == "topics" else f"{SICK}/keyed"
    key = strange.every_key(world.bus, SICK, 0, "keyed")[name]
    world.bus.client.call("HSET", key, "stray/group" if name == "groups" else "stray", raw)
    if name == "topics":
        world.bus.client.call("HSET", key, field, raw)

    world.assert_goes_on(WELL)
    strange.assert_pages_answer(admin_client, WELL, "keyed")
    strange.assert_pages_answer(admin_client, SICK, "keyed")
    strange.assert_commands_answer(world.bus, Audited, SICK, "keyed")
    assert "stray" in told(world.bus)
    assert b"stray" in admin_client.get("/admin/jitney/overview/").content

    # What code declares is written anew by whoever starts; with a word in the log
    if name == "topics":
        again = Bus(world.bus.settings, declared=world.bus.declared)
        assert again.registry.spec(SICK).partitions == strange.PARTITIONS
        assert "is written anew" in caplog.text
        again.close()
    world.bus.client.call("HDEL", key, "stray", "stray/group")
    world.assert_goes_on(SICK)
    assert not findings(world.bus)


def test_a_record_of_a_group_that_cannot_be_read_is_written_anew_by_a_worker(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    key = world.bus.keys.groups
    world.bus.client.call("HSET", key, f"{SICK}/keyed", b"\xff")

    wait_until(lambda: not findings(world.bus), 30, "the record to be mended")
    world.assert_goes_on(SICK)
    assert "is written anew" in caplog.text
    assert orjson.loads(world.bus.client.call("HGET", key, f"{SICK}/keyed"))["ordering"] == "key"


NEWER_TOPIC = b'{"partitions": {"count": 8}, "retention": null, "tiers": ["hot"]}'
NEWER_GROUP = b'{"ordering": "fifo", "start": "earliest", "paused": false, "born": "x"}'


def test_a_record_that_a_newer_version_may_have_written_is_never_overwritten(
    server: EmbeddedServer, prefix: str
) -> None:
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders", partitions=2)
    bus.registry.project(bus.declared.specs().values())
    bus.client.call("HSET", bus.keys.topics, "orders", NEWER_TOPIC)
    bus.client.call("HSET", bus.keys.groups, "orders/stock", NEWER_GROUP)

    with pytest.raises(ForeignData, match="newer"):
        bus.registry.project(bus.declared.specs().values())
    with pytest.raises(ForeignData, match="newer"):
        bus.registry.declare_groups([GroupSpec(topic="orders", name="stock")])

    assert bus.client.call("HGET", bus.keys.topics, "orders") == NEWER_TOPIC
    assert bus.client.call("HGET", bus.keys.groups, "orders/stock") == NEWER_GROUP
    bus.close()


def test_a_topic_whose_record_cannot_be_read_does_not_shrink_when_it_is_written_anew(
    server: EmbeddedServer, prefix: str
) -> None:
    bus = Bus(server.url, prefix=prefix)
    bus.registry.project([TopicSpec(name="orders", partitions=4)])
    bus.client.call("HSET", bus.keys.topics, "orders", b"junk")

    with pytest.raises(ConfigurationError, match="beyond 2 partitions"):
        bus.registry.project([TopicSpec(name="orders", partitions=2)])
    bus.registry.project([TopicSpec(name="orders", partitions=4)])
    assert bus.registry.stored("orders").partitions == 4
    bus.close()


# ---------------------------------------------------------------------- other versions beside this one


def test_two_versions_work_side_by_side(world: World) -> None:
    """Records exactly as 0.1.0 and its successors wrote them, and as a newer version may."""
    keys, call = world.bus.keys, world.bus.client.call
    # as they were written before records had anything unknown kept
    call("HSET", keys.topics, SICK, orjson.dumps({"partitions": 2, "retention": 604800.0}))
    call("HSET", keys.groups, f"{SICK}/keyed",
         orjson.dumps({"ordering": "key", "start": "earliest", "paused": False}))  # fmt: skip
    world.assert_goes_on(SICK, fail=1)
    assert not findings(world.bus)

    # as a newer one writes them: more fields, and more in the state of a group
    newer = {"ordering": "key", "start": "earliest", "paused": False, "born": "ab12", "limit": {"per_s": 5}}
    call("HSET", keys.groups, f"{SICK}/keyed", orjson.dumps(newer))
    call("HSET", keys.topics, SICK, orjson.dumps({"partitions": 2, "retention": 604800.0, "schema": "v2"}))
    call("HSET", keys.partition(SICK, 0).state("keyed"), "paused_until", "x", "limits:0", b"\x00")
    world.assert_goes_on(SICK, fail=1)
    assert not findings(world.bus)

    # and what this version rewrites keeps them
    spec = world.bus.registry.group(SICK, "keyed")
    world.bus.registry.set_group(spec)
    world.bus.registry.declare_groups([GroupSpec(topic=SICK, name="keyed", ordering="partition")])
    kept = orjson.loads(call("HGET", keys.groups, f"{SICK}/keyed"))
    assert kept == {**newer, "ordering": "partition"}
    world.bus.registry.project([TopicSpec(name=SICK, partitions=2)])
    assert orjson.loads(call("HGET", keys.topics, SICK)) == {
        "partitions": 2,
        "retention": None,
        "schema": "v2",
    }


def test_what_a_newer_version_keeps_of_a_failing_message_is_written_back(world: World) -> None:
    from bus.format.state import Failure

    raw = orjson.dumps({"k": "", "a": 2, "e": "no", "t": 5, "n": False, "trace_id": "t-1"})
    failure = Failure.read("key", "1-1", raw)

    assert isinstance(failure, Failure)
    failure.attempts += 1
    assert orjson.loads(failure.dump()) == {**orjson.loads(raw), "a": 3}


# ---------------------------------------------------------------------- ids beyond the clock

FUTURE = ["18446744073709551615-5", "1764294000000000-0", "9223372036854775808-1"]


@pytest.mark.parametrize("message_id", FUTURE)
def test_an_id_in_the_far_future_breaks_nothing(
    world: World, admin_client: Client, capsys: pytest.CaptureFixture[str], message_id: str
) -> None:
    stream = world.bus.keys.partition(SICK, 0).stream

    world.bus.client.call("XADD", stream, "NOMKSTREAM", message_id, "v", '{"n": -1}', "k", "a")

    world.assert_goes_on(SICK)
    world.assert_goes_on(SICK, fail=1)
    world.publish(SICK, fail=9)
    for group in GROUPS:
        strange.assert_pages_answer(admin_client, SICK, group)
        strange.assert_commands_answer(world.bus, Audited, SICK, group)
    assert "time out of range" in capsys.readouterr().out
    assert b"time out of range" in admin_client.get(f"/admin/jitney/topic/named/{SICK}/messages/").content
    assert f"{stream}' by " in told(world.bus)


@pytest.mark.both_servers
def test_retention_goes_by_when_messages_were_seen_where_ids_are_ahead_of_the_clock(
    server: EmbeddedServer, prefix: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a partition whose ids are a year ahead, and a group that has settled all but the last
    bus = Bus(server.url, prefix=prefix)
    bus.registry.project([TopicSpec(name="orders", retention=timedelta(hours=1))])
    bus.registry.declare_groups([GroupSpec(topic="orders", name="stock")])
    keys, now = bus.keys.partition("orders", 0), int(time.time() * 1000)
    call = bus.client.call

    def trim(at: float) -> list[int]:
        """As if so many hours had passed."""
        ms = now + int(at * 3_600_000)
        reply = commands.run(
            bus.client, "trim", [keys.stream, keys.ahead], [ms, ms - 3_600_000, 225_000, "stock"]
        )
        return [int(reply[0]), call("XLEN", keys.stream)]

    def publish_and_settle() -> None:
        ids = [bus.publish("orders", n).id for n in range(10)]
        call("XREADGROUP", "GROUP", "stock", "0", "STREAMS", keys.stream, ">")
        call("XACK", keys.stream, "stock", *ids)

    ahead = now + 365 * 24 * 3_600_000
    call("XADD", keys.stream, "NOMKSTREAM", f"{ahead}-0", "v", "1")
    publish_and_settle()
    call("XACK", keys.stream, "stock", f"{ahead}-0")

    # Then what was there an hour ago goes, and what came later stays for its hour
    assert trim(0) == [0, 11]
    publish_and_settle()
    assert trim(0.5) == [0, 21]
    assert trim(0.9) == [0, 21]
    assert trim(1.01) == [10, 11]  # XTRIM keeps the id that it is given
    assert trim(1.4) == [0, 11]
    assert trim(1.51) == [10, 1]
    # and never more than the groups have settled.
    bus.publish("orders", 0)
    assert trim(9)[1] == 2
    # A stream that is made again knows nothing of what was noted of the one before.
    call("DEL", keys.stream)
    bus.publish("orders", 0)
    call("XADD", keys.stream, f"{now + 7_200_000}-0", "v", "1")
    assert trim(0)[1] == 2

    # It is said, in the log and by doctor
    call("XREADGROUP", "GROUP", "stock", "0", "STREAMS", keys.stream, ">")
    assert retention.trim(bus, bus.registry.spec("orders")) == 0
    assert "ahead of the server's clock by" in caplog.text
    (finding,) = findings(bus)
    assert f"{keys.stream}' by " in finding.text
    bus.close()


def test_a_stream_that_is_full_is_told_of_and_made_again_when_it_is_deleted(
    world: World, admin_client: Client
) -> None:
    stream = world.bus.keys.partition(SICK, 0).stream
    last = f"{2**64 - 1}-{2**64 - 1}"
    world.bus.client.call("XADD", stream, "NOMKSTREAM", last, "v", '{"n": -1}')

    with pytest.raises(PartitionFull, match="doctor"):
        world.publish(SICK)
    world.assert_goes_on(WELL)
    strange.assert_pages_answer(admin_client, SICK, "keyed")
    strange.assert_commands_answer(world.bus, Audited, SICK, "keyed")
    assert "greatest that there can be" in told(world.bus)

    wait_until(lambda: world.has_handled(SICK, [-1]), what="the last message to be handled")
    world.bus.client.call("DEL", stream)
    world.assert_goes_on(SICK)
    assert not findings(world.bus)


@pytest.mark.parametrize("control", [False, True])
def test_who_waits_for_more_than_an_id_in_the_far_future_hears_that_another_has_made_the_stream_anew(
    world: World, control: bool
) -> None:
    # given groups that were given an id that no clock reaches, and are idle; such an id may have been in the
    # control stream, too
    keys = world.bus.keys.partition(SICK, 0)
    last = f"{2**64 - 1}-{2**64 - 1}"
    if control:
        watcher = world.worker.consumer._watcher
        world.bus.client.call("XADD", world.bus.keys.control, last, "v", "1")
        wait_until(lambda: watcher._control_id == last, 20, "the watcher to have heard it")
        world.bus.client.call("DEL", world.bus.keys.control)
    world.bus.client.call("XADD", keys.stream, last, "v", "1")
    scheduler, membership = world.worker.consumer.scheduler, world.worker.consumer._membership
    assert membership is not None
    wait_until(
        lambda: _idle(scheduler.watched(), last) >= len(GROUPS), 20, "all groups to be idle at that id"
    )
    # when the stream is removed, and a slice of one of them notices it before anybody publishes
    world.bus.client.call("DEL", keys.stream)
    membership.repair()
    wait_until(lambda: world.bus.client.call("EXISTS", keys.stream), 20, "the stream to be made again")
    # then what is published now is handled by all of them
    world.assert_goes_on(SICK)


def _idle(watched: dict[LaneId, str], position: str) -> int:
    """How many groups wait for more than this id."""
    return len({lane.group for lane, last_id in watched.items() if last_id == position})
