"""`delay=` and `at=`: kept until due, moved once and in order, listed, cancelled; nothing is ever lost."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus import doctor, observe
from bus.client import Bus
from bus.errors import BusError, BusFull, ConfigurationError, InvalidMessage, Undecodable, UnknownTopic
from bus.format.partition import partition_of
from bus.operating import delayed
from bus.operating.delayed import DelayedRef
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.upkeep import due
from bus.values import Receipt, TopicSpec
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
TOPIC = "orders"
PARTITIONS = 4

pytestmark = pytest.mark.both_servers


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.topic(TOPIC, partitions=PARTITIONS)
    bus.registry.spec(TOPIC)
    yield bus
    bus.client.call("CONFIG", "SET", "maxmemory", 0)
    bus.close()


def keys_of(bus: Bus, partition: int) -> Any:
    return bus.keys.partition(TOPIC, partition)


def entries(bus: Bus, partition: int) -> list[tuple[str, dict[bytes, bytes]]]:
    found = bus.client.call("XRANGE", keys_of(bus, partition).stream, "-", "+")
    return [(id.decode(), dict(zip(fields[::2], fields[1::2], strict=True))) for id, fields in found]


def stored(bus: Bus, partition: int) -> list[bytes]:
    """The values in one partition, in their order."""
    return [fields[b"v"] for _, fields in entries(bus, partition)]


def make_due(bus: Bus, receipt: Receipt, when: float = 1) -> None:
    """As if the time had come, or were `when` (ms)."""
    member = DelayedRef(receipt.partition, int(receipt.id[1:])).member
    assert bus.client.call("ZADD", keys_of(bus, receipt.partition).delayed, "XX", "CH", when, member) == 1


def later(bus: Bus, value: Any, key: str = "a", **more: Any) -> Receipt:
    """A message that waits."""
    receipt = bus.publish(TOPIC, value, key=key, **{"delay": 3600, **more})
    assert receipt.id.startswith("d")
    return receipt


def ref(receipt: Receipt) -> DelayedRef:
    return DelayedRef.parse(f"{receipt.partition}/{receipt.id}")


# ---------------------------------------------------------------------- when and in which order


def test_messages_are_moved_in_order_of_due_time_then_of_publishing(bus: Bus) -> None:
    receipts = [later(bus, number) for number in range(120)]
    # When they are due as three groups, the last published first; more than one script moves
    for number, receipt in enumerate(receipts):
        make_due(bus, receipt, 1000 - number // 40)
    assert due.Mover(bus).run() == 120
    order = [*range(80, 120), *range(40, 80), *range(40)]
    assert [int(value) for value in stored(bus, receipts[0].partition)] == order
    assert delayed.count(bus, TOPIC) == 0
    assert due.Mover(bus).run() == 0


def test_nothing_is_moved_before_it_is_due_by_the_clock_of_the_server(bus: Bus) -> None:
    before = bus.client.call("TIME")
    soon = later(bus, "soon", delay=0.3)
    later(bus, "later")
    wait_until(lambda: due.Mover(bus).run(), what="the message to be moved", interval=0.005)
    [(id, fields)] = entries(bus, soon.partition)
    assert fields[b"v"] == b'"soon"'
    # Its id is the server's time of the move
    assert int(id.partition("-")[0]) >= int(before[0]) * 1000 + int(before[1]) // 1000 + 300
    assert [one.message.value for one in delayed.find(bus, TOPIC)] == ["later"]


def test_at_is_a_moment_whatever_its_time_zone(bus: Bus) -> None:
    moment = datetime(2040, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
    local = moment.astimezone(datetime.strptime("+0530", "%z").tzinfo)
    bus.publish(TOPIC, 1, key="a", at=local)
    [found] = delayed.find(bus, TOPIC)
    assert found.due == moment.replace(microsecond=124000)


@pytest.mark.parametrize(
    "when",
    [
        {"delay": 0},
        {"delay": timedelta(0)},
        {"at": datetime(2001, 1, 1, tzinfo=UTC)},
        {"at": datetime(1901, 1, 1, tzinfo=UTC)},
    ],
)
@pytest.mark.parametrize("message_id", [None, "m"])
def test_what_is_due_already_is_stored_at_once(
    bus: Bus, when: dict[str, Any], message_id: str | None
) -> None:
    receipt = bus.publish(TOPIC, 1, message_id=message_id, **when)
    assert [id for id, _ in entries(bus, receipt.partition)] == [receipt.id]
    assert delayed.count(bus, TOPIC) == 0


@pytest.mark.parametrize(
    "when",
    [
        {"delay": -1},
        {"delay": float("nan")},
        {"delay": float("inf")},
        {"delay": 1e12},
        {"delay": 10**400},
        {"delay": True},
        {"delay": "30"},
        {"delay": timedelta(seconds=-1)},
        {"at": datetime(2040, 1, 1)},  # that is what is wrong with it
        {"at": 1700000000},
        {"at": "2040-01-01T00:00+00:00"},
        {"delay": 1, "at": datetime(2040, 1, 1, tzinfo=UTC)},
    ],
)
def test_a_time_that_means_nothing_is_refused(bus: Bus, when: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage, match=r"delay|at must be|at="):
        bus.publish(TOPIC, 1, **when)
    assert delayed.count(bus, TOPIC) == 0


# ---------------------------------------------------------------------- what is kept


def test_keys_headers_and_bytes_survive(bus: Bus) -> None:
    receipt = later(bus, b"\x00\xff,5:hello\r\n", key="clé", headers={"tenant": "dé"})
    [found] = delayed.find(bus, TOPIC)
    assert (found.message.value, found.message.key) == (b"\x00\xff,5:hello\r\n", "clé")
    make_due(bus, receipt)
    due.Mover(bus).run()
    [(_, fields)] = entries(bus, receipt.partition)
    expected = {
        b"v": b"\x00\xff,5:hello\r\n",
        b"e": b"raw",
        b"k": "clé".encode(),
        b"h": '{"tenant":"dé"}'.encode(),
    }
    assert fields == expected


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    value=st.binary(max_size=300) | st.text(max_size=30),
    key=st.none() | st.text(max_size=30),
    headers=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    message_id=st.none() | st.text(min_size=1, max_size=40),
)
def test_any_message_that_can_be_published_comes_out_as_it_went_in(
    bus: Bus, value: Any, key: str | None, headers: dict[str, str], message_id: str | None
) -> None:
    def publish(**when: Any) -> Receipt:
        return bus.publish(TOPIC, value, key=key, headers=headers, message_id=message_id, **when)

    def forget() -> None:
        if message_id is not None:
            bus.client.call("DEL", *(keys_of(bus, number).once(message_id) for number in range(PARTITIONS)))

    # Given the same message stored at once
    plain = publish()
    forget()
    receipt = publish(delay=3600)
    [found] = delayed.find(bus, TOPIC)
    make_due(bus, receipt)
    # When it is moved
    assert due.Mover(bus).run() == 1
    # Then nobody can see the difference, in the list or in the stream
    direct = next(fields for id, fields in entries(bus, plain.partition) if id == plain.id)
    assert entries(bus, receipt.partition)[-1][1] == direct == found.message.raw
    assert found.message_id == message_id
    forget()


def test_a_keyed_message_waits_in_the_partition_of_its_key(bus: Bus) -> None:
    for key in map(str, range(20)):
        assert later(bus, 1, key=key).partition == partition_of(key, PARTITIONS)


def test_messages_that_waited_stay_in_their_partition_when_there_are_more(bus: Bus) -> None:
    receipts = {key: later(bus, key, key=key) for key in map(str, range(20))}
    bus.registry.project([TopicSpec(name=TOPIC, partitions=PARTITIONS * 2)])
    new = {key: later(bus, f"new {key}", key=key) for key in receipts}
    for receipt in [*receipts.values(), *new.values()]:
        make_due(bus, receipt)
    assert due.Mover(bus).run() == 40
    for number in range(PARTITIONS * 2):
        expected = [f'"{key}"' for key, receipt in receipts.items() if receipt.partition == number]
        expected += [f'"new {key}"' for key, receipt in new.items() if receipt.partition == number]
        assert [value.decode() for value in stored(bus, number)] == expected


def test_messages_wait_through_a_restart_of_the_server(own_server: EmbeddedServer, prefix: str) -> None:
    bus = Bus(own_server.url, prefix=prefix)
    bus.topic(TOPIC, partitions=PARTITIONS)
    receipts = [later(bus, number, key=str(number), message_id=f"m{number}") for number in range(50)]
    before = list(delayed.find(bus, TOPIC))
    own_server.kill()
    own_server.start()
    assert [(one.ref, one.due) for one in delayed.find(bus, TOPIC)] == [(one.ref, one.due) for one in before]
    for receipt in receipts:
        make_due(bus, receipt)
    assert due.Mover(bus).run() == 50
    assert sorted(int(value) for number in range(PARTITIONS) for value in stored(bus, number)) == list(
        range(50)
    )
    bus.close()


# ---------------------------------------------------------------------- once

MOVER = """
import sys, time
from bus.operating import delayed
from bus.upkeep import due
from bus.client import Bus
bus = Bus(sys.argv[1], prefix=sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
moved = 0
while delayed.count(bus, "orders"):
    moved += due.Mover(bus).run()
print(moved)
"""


def test_several_movers_move_each_message_once(server: EmbeddedServer, bus: Bus) -> None:
    # Given movers in processes and threads of their own, and a ledger of what is published
    ledger = {number: later(bus, number, key=str(number % 40)) for number in range(2000)}
    for number, receipt in ledger.items():
        make_due(bus, receipt, 1 + number)
    command = [sys.executable, "-c", MOVER, server.url, bus.settings.prefix]
    processes = [
        subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    moved: list[int] = []
    start = threading.Barrier(4)

    def mover() -> None:
        start.wait()
        while delayed.count(bus, TOPIC):
            moved.append(due.Mover(bus).run())

    threads = [threading.Thread(target=mover) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for thread in threads:
        thread.start()
    # When all of them begin at once
    start.wait()
    for process in processes:
        out, _ = process.communicate("go\n", timeout=60)
        moved.append(int(out))
        assert process.returncode == 0
    for thread in threads:
        thread.join()
    # Then the streams are the ledger, in order
    assert sum(moved) == 2000
    for partition in range(PARTITIONS):
        expected = [number for number, receipt in ledger.items() if receipt.partition == partition]
        assert [int(value) for value in stored(bus, partition)] == expected


def test_a_publish_under_the_same_id_gets_the_receipt_of_the_waiting_then_of_the_moved_message(
    bus: Bus,
) -> None:
    first = later(bus, 1, message_id="order-991")
    again = bus.publish(TOPIC, 2, key="a", message_id="order-991", delay=60)
    assert (again.duplicate, again.id) == (True, first.id)
    bus.client.call("EXPIRE", keys_of(bus, first.partition).once("order-991"), 77)
    make_due(bus, first)
    due.Mover(bus).run()
    [(id, _)] = entries(bus, first.partition)
    moved = bus.publish(TOPIC, 3, key="a", message_id="order-991")
    assert (moved.duplicate, moved.id) == (True, id)
    assert 70 < bus.client.call("TTL", keys_of(bus, first.partition).once("order-991")) <= 77
    assert stored(bus, first.partition) == [b"1"]


def test_the_id_of_another_message_is_left_alone(bus: Bus) -> None:
    # Given an id whose window has ended, and that was used again since
    old = later(bus, "old", message_id="m")
    bus.client.call("DEL", keys_of(bus, old.partition).once("m"))
    new = bus.publish(TOPIC, "new", key="a", message_id="m")
    gone = later(bus, "gone", message_id="n")
    bus.client.call("DEL", keys_of(bus, old.partition).once("n"))
    newer = later(bus, "newer", message_id="n")
    # When the old ones are moved, and cancelled
    make_due(bus, old)
    due.Mover(bus).run()
    assert delayed.cancel(bus, TOPIC, [ref(gone)]) == [True]
    # Then the id still names the new ones
    assert bus.publish(TOPIC, 1, key="a", message_id="m").id == new.id
    assert bus.publish(TOPIC, 1, key="a", message_id="n").id == newer.id


# ---------------------------------------------------------------------- trouble


def test_a_full_memory_refuses_new_ones_and_moves_none_and_loses_nothing(bus: Bus) -> None:
    receipts = [later(bus, number, message_id=f"m{number}") for number in range(30)]
    for receipt in receipts:
        make_due(bus, receipt)
    bus.client.call("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(BusFull):
        bus.publish(TOPIC, 1, delay=60)
    with pytest.raises(BusFull, match=TOPIC):
        due.Mover(bus).run()
    assert delayed.count(bus, TOPIC) == 30
    assert stored(bus, receipts[0].partition) == []
    # Cancelling works meanwhile
    assert delayed.cancel(bus, TOPIC, [ref(receipts[7])]) == [True]
    # When there is memory again
    bus.client.call("CONFIG", "SET", "maxmemory", 0)
    assert due.Mover(bus).run() == 29
    expected = [number for number in range(30) if number != 7]
    assert [int(value) for value in stored(bus, receipts[0].partition)] == expected


def test_a_stream_that_vanished_is_made_again_with_its_groups(bus: Bus) -> None:
    bus.registry.declare_groups([GroupSpec(topic=TOPIC, name="inventory")])
    receipt = later(bus, 1)
    make_due(bus, receipt)
    stream = keys_of(bus, receipt.partition).stream
    bus.client.call("DEL", stream)
    assert due.Mover(bus).run() == 1
    given = bus.client.call("XREADGROUP", "GROUP", "inventory", "0", "STREAMS", stream, ">")
    assert given[0][1][0][1][1] == b"1"


def test_what_waits_in_a_topic_that_is_deleted_goes_with_it(bus: Bus) -> None:
    receipt = later(bus, 1)
    bus.registry.delete(TOPIC)
    assert due.Mover(bus).run() == 0
    assert bus.client.call("EXISTS", keys_of(bus, receipt.partition).delayed) == 0
    with pytest.raises(UnknownTopic):
        delayed.find(bus, TOPIC)


@pytest.mark.parametrize("broken", ["stream", "delayed", "delayed_body"])
def test_a_broken_partition_stops_no_other(bus: Bus, broken: str) -> None:
    receipts = [later(bus, key, key=key) for key in map(str, range(40))]
    for receipt in receipts:
        make_due(bus, receipt)
    # Given one partition with a key of a foreign type
    bad = receipts[0].partition
    key = getattr(keys_of(bus, bad), broken)
    bus.client.call("RENAME", key, f"{key}:aside")
    bus.client.call("SET", key, "foreign")
    # When what is due is moved
    with pytest.raises(BusError, match=f"{TOPIC}/{bad} cannot be moved.*WRONGTYPE"):
        due.Mover(bus).run()
    # Then the others are empty, and with the key in its place this one is moved whole
    others = [receipt for receipt in receipts if receipt.partition != bad]
    assert sum(len(stored(bus, number)) for number in range(PARTITIONS) if number != bad) == len(others)
    bus.client.call("RENAME", f"{key}:aside", key)
    assert due.Mover(bus).run() == len(receipts) - len(others)


UNREADABLE = [b"", b"rubbish", b"5:hello", b"0:,", b"0:,1:v,", b"9999999999999:x,", b"-1:,"]


@pytest.mark.parametrize("body", UNREADABLE)
def test_a_body_that_cannot_be_read_is_set_aside_and_stops_nothing(bus: Bus, body: bytes) -> None:
    first, bad, last = (later(bus, number) for number in range(3))
    keys = keys_of(bus, bad.partition)
    bus.client.call("HSET", keys.delayed_body, ref(bad).member, body)
    for receipt in (first, bad, last):
        make_due(bus, receipt)
    with pytest.raises(BusError, match=r"set aside.*doctor"):
        due.Mover(bus).run()
    assert stored(bus, bad.partition) == [b"0", b"2"]
    # It is kept as it is, is never due again, and is listed until somebody cancels it
    assert due.Mover(bus).run() == 0
    assert bus.client.call("HGET", keys.delayed_body, ref(bad).member) == body
    [found] = delayed.find(bus, TOPIC)
    with pytest.raises(Undecodable, match="delayed"):
        _ = found.message.value
    assert delayed.cancel(bus, TOPIC, [found.ref]) == [True]
    assert bus.client.call("HKEYS", keys.delayed_body) == [b"last"]


#: Members that `delay.lua` does not write, though Lua takes some of them for numbers.
FOREIGN = [
    "abc",
    "",
    "7",
    "-0000000000000007",
    "0x10",
    "nan",
    "inf",
    " 000000000000007",
    "00000000000000017",
    "\xff",
]


@pytest.mark.parametrize("with_body", [True, False])
@pytest.mark.parametrize("score", ["-inf", "-5", "0", "1.5"])
def test_a_member_that_is_no_number_is_set_aside_and_published_never(
    bus: Bus, score: str, with_body: bool
) -> None:
    # Given members of a stranger before messages that are due, more than one script looks at
    receipts = [later(bus, number) for number in range(3)]
    keys = keys_of(bus, receipts[0].partition)
    strangers = [*FOREIGN, *(f"stranger-{number}" for number in range(230))]
    for member in strangers:
        bus.client.call("ZADD", keys.delayed, score, member)
        if with_body:
            bus.client.call("HSET", keys.delayed_body, member, "0:,1:v,1:1,")
    for receipt in receipts:
        make_due(bus, receipt, 5)
    # When what is due is moved
    with pytest.raises(BusError, match=f"{len(strangers)} .*set aside"):
        due.Mover(bus).run()
    # Then that are the messages, once, and the strangers' are kept out of the way
    assert stored(bus, receipts[0].partition) == [b"0", b"1", b"2"]
    assert due.Mover(bus).run() == 0
    assert len(entries(bus, receipts[0].partition)) == 3
    assert bus.client.call("ZCOUNT", keys.delayed, "+inf", "+inf") == len(strangers)
    assert list(delayed.find(bus, TOPIC)) == []
    assert list(delayed.refs(bus, TOPIC)) == []


def test_a_body_that_is_gone_is_reported_once_and_stops_nothing(bus: Bus) -> None:
    gone, other = later(bus, 0), later(bus, 1)
    for receipt in (gone, other):
        make_due(bus, receipt)
    bus.client.call("HDEL", keys_of(bus, gone.partition).delayed_body, ref(gone).member)
    with pytest.raises(BusError, match=r"1 .*set aside"):
        due.Mover(bus).run()
    assert stored(bus, other.partition) == [b"1"]
    assert due.Mover(bus).run() == 0


def test_a_key_of_a_foreign_type_under_a_message_id_stops_nothing(bus: Bus) -> None:
    receipts = [later(bus, number, message_id=f"m{number}") for number in range(3)]
    once = keys_of(bus, receipts[0].partition).once("m1")
    bus.client.call("DEL", once)
    bus.client.call("RPUSH", once, "foreign")
    for receipt in receipts:
        make_due(bus, receipt)
    assert due.Mover(bus).run() == 3
    assert stored(bus, receipts[0].partition) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("score", ["inf", "1e300", "9007199254740993"])
def test_a_time_that_never_comes_is_no_time(bus: Bus, score: str) -> None:
    receipt = later(bus, 1)
    bus.client.call("ZADD", keys_of(bus, receipt.partition).delayed, score, ref(receipt).member)
    assert due.Mover(bus).run() == 0
    [found] = delayed.find(bus, TOPIC)
    assert found.due.year == 9999
    assert observe.topic(bus, TOPIC).next_due is None


def test_the_doctor_names_what_will_never_be_moved(bus: Bus) -> None:
    assert [one.level for one in doctor.examine(bus) if one.check == "delayed"] == ["ok"]
    # Given a message without its body, one with a body that cannot be read, a stranger's, and a body alone
    gone, bad, fine = (later(bus, number) for number in range(3))
    keys = keys_of(bus, gone.partition)
    bus.client.call("HDEL", keys.delayed_body, ref(gone).member)
    bus.client.call("HSET", keys.delayed_body, ref(bad).member, "rubbish", "alone", "0:,1:v,1:1,")
    bus.client.call("ZADD", keys.delayed, 1, "abc\n")
    for receipt in (gone, bad, fine):
        make_due(bus, receipt)
    with pytest.raises(BusError, match=r"3 .*set aside"):
        due.Mover(bus).run()
    found = [one for one in doctor.examine(bus) if one.check == "delayed"]
    # Then each is named, with its key and what to do
    assert [one.level for one in found] == ["warning"] * 4
    told = " ".join(f"{one.text} {one.hint}" for one in found)
    assert keys.delayed in told
    assert keys.delayed_body in told
    for part in (str(ref(gone)), str(ref(bad)), r"abc\n", "delayed cancel", "ZREM", "1 bod"):
        assert part in told, part


def test_large_messages_are_moved_in_portions(bus: Bus) -> None:
    receipts = [later(bus, b"x" * 700_000, key="a") for _ in range(5)]
    for receipt in receipts:
        make_due(bus, receipt)
    assert due.Mover(bus).run() == 5


# ---------------------------------------------------------------------- who has something due


def commands_of(bus: Bus, work: Any) -> dict[str, int]:
    """How often the server ran which command meanwhile, also inside of scripts."""

    def calls() -> Counter[str]:
        found: Counter[str] = Counter()
        for line in bus.client.call("INFO", "commandstats").decode().splitlines():
            if line.startswith("cmdstat_"):
                name, _, rest = line.removeprefix("cmdstat_").partition(":")
                found[name] = int(rest.split(",")[0].removeprefix("calls="))
        return found

    before = calls()
    work()
    return {name: count for name, count in (calls() - before).items() if name != "info"}


def test_looking_for_what_is_due_asks_no_partition(bus: Bus) -> None:
    bus.registry.project([TopicSpec(name=TOPIC, partitions=256)])
    mover = due.Mover(bus)
    mover.run()  # the first time every partition is asked
    for key in map(str, range(50)):
        later(bus, key, key=key)
    assert commands_of(bus, mover.run) == {"time": 1, "zrange": 1}


def test_the_look_at_every_partition_is_one_command_for_many_of_them_where_nothing_waits(bus: Bus) -> None:
    bus.registry.project([TopicSpec(name=TOPIC, partitions=256)])
    ran = commands_of(bus, due.Mover(bus).run)
    assert (ran["exists"], ran["zrange"]) == (4, 1)
    receipt = later(bus, 1)
    make_due(bus, receipt)
    ran = commands_of(bus, due.Mover(bus).run)
    assert (
        ran["zrange"] == 1 + due.PARTITIONS_AN_EXISTS + 1
    )  # the zset of due times, one chunk, and the script
    assert stored(bus, receipt.partition) == [b"1"]


def test_what_is_published_after_a_look_is_moved_when_it_is_due(bus: Bus) -> None:
    mover = due.Mover(bus)
    mover.run()
    keys = list(map(str, range(20)))
    receipts = [bus.publish(TOPIC, key, key=key, delay=0.2) for key in keys]
    later(bus, "later", key="0")
    wanted = {receipt.partition for receipt in receipts}
    moved = []
    wait_until(lambda: moved.append(mover.run()) or sum(moved) == 20, what="all to be moved", interval=0.005)
    # Then the zset says when the next is due, and nothing of partitions where nothing waits
    [name, score] = bus.client.call("ZRANGE", bus.keys.due, 0, -1, "WITHSCORES")
    partition = partition_of("0", PARTITIONS)
    assert partition in wanted
    assert name.decode() == f"{TOPIC}:{partition}"
    waiting = bus.client.call("ZRANGE", keys_of(bus, partition).delayed, 0, 0, "WITHSCORES")
    assert score == waiting[1]


@pytest.mark.parametrize("damage", ["gone", "late", "foreign"])
def test_what_the_zset_of_due_times_lacks_is_found_by_the_look_at_every_partition(
    bus: Bus, damage: str
) -> None:
    # Given a message of which that zset says nothing (as publishers of the version before leave it), or
    # something wrong, or that is no zset at all
    if damage == "foreign":
        bus.client.call("SET", bus.keys.due, "foreign")
    soon, receipt = later(bus, "soon"), later(bus, "later", key="b")
    if damage == "gone":
        bus.client.call("DEL", bus.keys.due)
    elif damage == "late":
        bus.client.call("ZADD", bus.keys.due, 10**15, f"{TOPIC}:{soon.partition}")
    make_due(bus, soon)
    mover = due.Mover(bus)
    if damage == "foreign":
        with pytest.raises(BusError, match="no sorted set; delete it"):
            mover.run()
        bus.client.call("DEL", bus.keys.due)
    else:
        assert mover.run() == 1
    assert stored(bus, soon.partition) == [b'"soon"']
    # Then a new mover finds what waits later, and it is known from then on
    due.Mover(bus).run()
    assert bus.client.call("ZSCORE", bus.keys.due, f"{TOPIC}:{receipt.partition}") is not None
    make_due(bus, receipt)
    bus.client.call("ZADD", bus.keys.due, "LT", 1, f"{TOPIC}:{receipt.partition}")
    assert mover.run() == 1


def test_a_partition_that_only_an_older_version_knows_to_fill_is_looked_at_again_and_again(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover = due.Mover(bus)
    mover.run()
    receipt = later(bus, 1)
    make_due(bus, receipt)
    bus.client.call("DEL", bus.keys.due)
    assert mover.run() == 0
    clock = time.monotonic
    monkeypatch.setattr(due.time, "monotonic", lambda: clock() + due.SWEEP_SECONDS)
    assert mover.run() == 1


def test_strange_members_of_the_zset_of_due_times_are_dropped(bus: Bus) -> None:
    receipt = later(bus, 1)
    mover = due.Mover(bus)
    mover.run()
    for member in ("", "rubbish", "\xff", "orders:99", "orders:-1", "orders:٣", "gone:0", ":"):
        bus.client.call("ZADD", bus.keys.due, "-inf", member)
    make_due(bus, receipt)
    bus.client.call("ZADD", bus.keys.due, 1, f"{TOPIC}:{receipt.partition}")
    assert mover.run() == 1
    assert bus.client.call("EXISTS", bus.keys.due) == 0


def test_a_full_memory_keeps_the_zset_of_due_times_right(bus: Bus) -> None:
    receipt = later(bus, 1)
    bus.client.call("DEL", bus.keys.due)
    bus.client.call("CONFIG", "SET", "maxmemory", 1)
    mover = due.Mover(bus)
    assert mover.run() == 0
    bus.client.call("CONFIG", "SET", "maxmemory", 0)
    assert due.Mover(bus).run() == 0
    assert bus.client.call("ZSCORE", bus.keys.due, f"{TOPIC}:{receipt.partition}") is not None


# ---------------------------------------------------------------------- listing and cancelling


def test_messages_are_listed_in_due_order_over_all_partitions(bus: Bus) -> None:
    receipts = [later(bus, number, key=str(number)) for number in range(200)]
    for number, receipt in enumerate(receipts):
        make_due(bus, receipt, 10**13 - number)
    found = [one.message.value for one in delayed.find(bus, TOPIC)]
    assert found == list(reversed(range(200)))
    part = [one.ref.partition for one in delayed.find(bus, TOPIC, 2)]
    assert part == [2] * sum(receipt.partition == 2 for receipt in receipts)
    assert delayed.count(bus, TOPIC) == 200
    assert delayed.count(bus, TOPIC, 2) == len(part)
    with pytest.raises(ConfigurationError, match="partitions 0 to 3"):
        delayed.find(bus, TOPIC, 4)


def test_a_list_over_many_pages_of_one_due_time_misses_nothing_while_messages_go(bus: Bus) -> None:
    moment = datetime(2040, 1, 1, tzinfo=UTC)
    receipts = [bus.publish(TOPIC, number, key="a", at=moment) for number in range(400)]
    first = bus.publish(TOPIC, "earlier", key="a", at=moment - timedelta(days=1))
    seen: list[Any] = []
    for one in delayed.find(bus, TOPIC):
        seen.append(one.message.value)
        if len(seen) == 60:  # while the second page is read, most of what was seen goes
            delayed.cancel(bus, TOPIC, [ref(first), *map(ref, receipts[:45])])
        if len(seen) == 210:
            delayed.cancel(bus, TOPIC, [ref(receipt) for receipt in receipts[45:208]])
    assert seen == ["earlier", *range(400)]


def test_cancelling_frees_the_id_and_says_what_was_there(bus: Bus) -> None:
    kept, gone = later(bus, "kept", message_id="kept"), later(bus, "gone", message_id="gone")
    wanted = [ref(gone), DelayedRef(gone.partition, 999), DelayedRef(77, 1)]
    assert delayed.cancel(bus, TOPIC, wanted) == [True, False, False]
    assert delayed.cancel(bus, TOPIC, wanted) == [False, False, False]
    assert [one.ref for one in delayed.find(bus, TOPIC)] == [ref(kept)]
    again = bus.publish(TOPIC, "again", key="a", message_id="gone")
    assert not again.duplicate
    make_due(bus, kept)
    due.Mover(bus).run()
    assert stored(bus, kept.partition) == [b'"again"', b'"kept"']


def test_cancelling_against_a_mover_leaves_each_message_in_one_place(bus: Bus) -> None:
    receipts = [later(bus, number) for number in range(1000)]
    for receipt in receipts:
        make_due(bus, receipt)
    result: list[bool] = []
    start = threading.Barrier(2)

    def cancel() -> None:
        start.wait()
        for receipt in reversed(receipts):
            result.extend(delayed.cancel(bus, TOPIC, [ref(receipt)]))

    thread = threading.Thread(target=cancel)
    thread.start()
    start.wait()
    while delayed.count(bus, TOPIC):
        due.Mover(bus).run()
    thread.join()
    cancelled = {number for number, was in zip(reversed(range(1000)), result, strict=True) if was}
    assert sorted([*cancelled, *map(int, stored(bus, receipts[0].partition))]) == list(range(1000))


@pytest.mark.parametrize(
    "written", ["", "3", "d17", "3/17", "3/d", "-1/d1", "3/d1 ", "3/d٣", "99999/d1", "3/1-0"]
)
def test_what_is_no_delayed_message_is_refused(bus: Bus, written: str) -> None:
    with pytest.raises(ConfigurationError, match="3/d17"):
        DelayedRef.parse(written)
    assert str(DelayedRef.parse("3/d17")) == "3/d17"
