"""Snapshots on real servers: lag against the truth, offsets, owners, messages, few round trips."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from bus import observe
from bus.client import Bus
from bus.errors import UnknownGroup, UnknownTopic
from bus.observe import GroupPartitionSnapshot, Lag
from bus.observe.lag import PARTITION_BUDGET, ROUNDS
from bus.streams.wire import Link
from bus.topics.registry import GroupSpec
from bus.values import Message, Ordering, TopicSpec, id_pair
from tests.servers import redis7_server
from tests.waiting import wait_until

TOPIC, GROUP = "orders", "inventory"


def declare(bus: Bus, partitions: int = 1, topic: str = TOPIC, **groups: Ordering) -> None:
    """A topic, with these groups (name=ordering)."""
    bus.registry.project([TopicSpec(name=topic, partitions=partitions)])
    bus.registry.declare_groups(
        GroupSpec(topic=topic, name=name, ordering=ordering) for name, ordering in groups.items()
    )


def stream(bus: Bus, partition: int = 0, topic: str = TOPIC) -> str:
    return bus.keys.partition(topic, partition).stream


def add(bus: Bus, *ids: int, partition: int = 0, topic: str = TOPIC) -> None:
    """Messages with the ids 1-1, 2-1, …"""
    key = stream(bus, partition, topic)
    bus.client.pipe([("XADD", key, f"{number}-1", "v", number) for number in ids])


def give(bus: Bus, count: int, group: str = GROUP, partition: int = 0, lane: str = "0") -> None:
    """Give the next `count` messages to the group."""
    bus.client.call(
        "XREADGROUP", "GROUP", group, lane, "COUNT", count, "STREAMS", stream(bus, partition), ">"
    )


def look(bus: Bus, group: str = GROUP, topic: str = TOPIC) -> GroupPartitionSnapshot:
    """The group in partition 0."""
    return observe.group(bus, topic, group)[1][0]


def truth(bus: Bus, group: str = GROUP) -> int:
    """How many messages there are after the group's position."""
    position = look(bus, group).position
    return len(bus.client.call("XRANGE", stream(bus), f"({position}", "+"))


def assert_true(bus: Bus, lag: int, group: str = GROUP) -> None:
    seen = look(bus, group)
    assert seen.lag == Lag(lag)
    assert truth(bus, group) == lag
    assert seen.end is not None
    assert seen.offset == seen.end - lag


class Trips:
    """Counts the round trips of all links."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[int] = []
        send = Link.send

        def counted(link: Link, packed: bytes, replies: int) -> None:
            self.commands.append(replies)
            send(link, packed, replies)

        monkeypatch.setattr(Link, "send", counted)

    def __len__(self) -> int:
        return len(self.commands)


# ---------------------------------------------------------------------- lag: the truth table


@pytest.mark.both_servers
def test_lag_of_a_group_from_the_beginning_is_exact_at_every_step(bus: Bus) -> None:
    declare(bus, inventory="key")
    assert_true(bus, 0)
    add(bus, *range(1, 11))
    assert_true(bus, 10)
    for left in range(9, -1, -1):
        give(bus, 1)
        assert_true(bus, left)
    add(bus, 11)
    assert_true(bus, 1)


@pytest.mark.both_servers
@pytest.mark.parametrize(
    ("start", "lag"), [("earliest", 5), ("latest", 0), ("3-1", 2), ("3-5", 2), ("9-0", 0)]
)
def test_lag_of_a_group_created_on_a_full_stream_is_exact(bus: Bus, start: str, lag: int) -> None:
    declare(bus)
    add(bus, 1, 2, 3, 4, 5)
    bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP, start=start)])
    assert_true(bus, lag)
    add(bus, 20, 21)
    assert_true(bus, lag + 2)
    give(bus, 1)
    assert_true(bus, lag + 1)


@pytest.mark.both_servers
@pytest.mark.parametrize("entries_read", [(), ("ENTRIESREAD", 99)])
def test_lag_of_a_group_moved_by_a_foreign_hand_is_counted(bus: Bus, entries_read: tuple[Any, ...]) -> None:
    # given a group whose position was set in the middle without, or with an impossible, ENTRIESREAD
    declare(bus, inventory="key")
    add(bus, *range(1, 11))
    bus.client.call("XGROUP", "SETID", stream(bus), GROUP, "6-1", *entries_read)
    # then its lag is that of the messages
    assert_true(bus, 4)
    give(bus, 1)
    assert_true(bus, 3)


@pytest.mark.both_servers
def test_lag_of_a_group_that_was_trimmed_past_counts_only_what_is_left(bus: Bus) -> None:
    # given a group at the second of ten messages, of which seven are trimmed
    declare(bus, inventory="key")
    add(bus, *range(1, 11))
    give(bus, 2)
    bus.client.call("XTRIM", stream(bus), "MAXLEN", 3)
    # then three are left for it, before its next read and after
    assert_true(bus, 3)
    assert look(bus).offset == 7
    give(bus, 1)
    assert_true(bus, 2)
    add(bus, 11)
    give(bus, 1)
    assert_true(bus, 2)
    give(bus, 9)
    assert_true(bus, 0)


@pytest.mark.both_servers
def test_lag_of_a_stream_trimmed_empty_is_zero(bus: Bus) -> None:
    declare(bus, inventory="key")
    add(bus, *range(1, 11))
    give(bus, 2)
    bus.client.call("XTRIM", stream(bus), "MAXLEN", 0)
    assert_true(bus, 0)
    assert (look(bus).offset, look(bus).end) == (10, 10)


@pytest.mark.both_servers
@pytest.mark.parametrize("deleted", [(5,), (10,), (1,), (2,), (3, 4, 10), (1, 2, 3, 9)])
def test_lag_after_a_foreign_hand_deleted_messages_is_that_of_those_left(
    bus: Bus, deleted: tuple[int, ...]
) -> None:
    declare(bus, inventory="key")
    add(bus, *range(1, 11))
    give(bus, 2)
    bus.client.call("XDEL", stream(bus), *(f"{number}-1" for number in deleted))
    assert look(bus).lag == Lag(truth(bus))
    add(bus, 11)
    assert look(bus).lag == Lag(truth(bus))
    give(bus, 3)
    assert look(bus).lag == Lag(truth(bus))


def test_lag_on_redis_7_0_is_still_exact_after_it_replayed_its_file(tmp_path: Path, prefix: str) -> None:
    # given a Redis 7.0, which does not write to its file how far a group has read
    with redis7_server(tmp_path / "server") as server:
        bus = Bus(server.url, prefix=prefix)
        declare(bus, inventory="key", revenue="key", late="key")
        add(bus, *range(1, 11))
        give(bus, 4)
        give(bus, 10, "revenue")
        # when it is killed and started again
        server.kill()
        server.start()
        # then the lag of each group is still exact
        assert_true(bus, 6)
        assert_true(bus, 0, "revenue")
        assert_true(bus, 10, "late")
        give(bus, 1)
        assert_true(bus, 5)
        bus.close()


@pytest.mark.both_servers
def test_counting_that_is_cut_short_says_at_least(bus: Bus) -> None:
    # given a group in the middle of more messages than are counted, whose lag the server does not know
    declare(bus, inventory="key")
    add(bus, *range(1, PARTITION_BUDGET + 103))
    bus.client.call("XGROUP", "SETID", stream(bus), GROUP, "2-1")
    # then its lag is "at least", its offset unknown, and the sums say so too
    summary, (seen,) = observe.group(bus, TOPIC, GROUP)
    assert seen.lag == Lag(PARTITION_BUDGET, exact=False)
    assert seen.offset is None
    assert seen.end == PARTITION_BUDGET + 102
    assert summary.lag == seen.lag


# ---------------------------------------------------------------------- groups


@pytest.mark.both_servers
def test_a_group_is_summed_over_its_partitions(bus: Bus) -> None:
    # given a group with work of every kind in two of three partitions
    declare(bus, 3, inventory="key")
    add(bus, *range(1, 11), partition=0)
    add(bus, *range(1, 6), partition=2)
    give(bus, 4, partition=0)
    give(bus, 1, partition=2)
    keys = bus.keys.partition(TOPIC, 0)
    bus.client.call("ZADD", keys.retry(GROUP), 1, "1-1", 2, "2-1")
    bus.client.call("ZADD", keys.held(GROUP), 0, "a:1")
    bus.client.call("XADD", keys.dead(GROUP), "*", "v", "1")
    bus.client.call("HSET", keys.state(GROUP), "trimmed", 7)
    # when it is looked at
    summary, parts = observe.group(bus, TOPIC, GROUP)
    # then each partition has its own numbers, and the sums are theirs
    assert [part.partition for part in parts] == [0, 1, 2]
    assert [part.position for part in parts] == ["4-1", "0-0", "1-1"]
    assert [part.offset for part in parts] == [4, 0, 1]
    assert [part.end for part in parts] == [10, 0, 5]
    assert [part.lag for part in parts] == [Lag(6), Lag(0), Lag(4)]
    assert [part.pending for part in parts] == [4, 0, 1]
    assert (parts[0].retrying, parts[0].held, parts[0].dead, parts[0].trimmed) == (2, 1, 1, 7)
    assert (summary.lag, summary.pending) == (Lag(10), 5)
    assert (summary.retrying, summary.held, summary.dead, summary.trimmed) == (2, 1, 1, 7)
    assert summary.missing_partitions == 0
    # and all functions show the same, but for the time that passes
    for others in (observe.groups(bus), observe.groups(bus, TOPIC), observe.topic(bus, TOPIC).groups):
        assert [replace(other, time_lag=summary.time_lag) for other in others] == [summary]


@pytest.mark.both_servers
def test_time_lag_is_the_age_of_the_oldest_message_not_given_yet(bus: Bus) -> None:
    declare(bus, inventory="key")
    seconds, _ = bus.client.call("TIME")
    now = int(seconds)
    for age in (900, 600, 300):
        bus.client.call("XADD", stream(bus), f"{(now - age) * 1000}-0", "v", "1")
    for age in (900, 600, 300):
        seen = look(bus)
        assert seen.time_lag is not None
        assert timedelta(seconds=age) <= seen.time_lag < timedelta(seconds=age + 60)
        assert timedelta(seconds=age) <= observe.groups(bus)[0].time_lag < timedelta(seconds=age + 60)  # type: ignore[operator]
        give(bus, 1)
    assert look(bus).time_lag == timedelta(0)


@pytest.mark.both_servers
def test_a_missing_stream_and_a_missing_group_are_unknown_and_no_error(bus: Bus) -> None:
    # given four partitions: one whole, one without its stream, one without its group, one overwritten
    declare(bus, 4, inventory="key")
    for partition in range(4):
        add(bus, 1, 2, partition=partition)
    bus.client.call("DEL", stream(bus, 1))
    bus.client.call("XGROUP", "DESTROY", stream(bus, 2), GROUP)
    bus.client.call("SET", stream(bus, 3), "something foreign")
    # when the group is looked at
    summary, parts = observe.group(bus, TOPIC, GROUP)
    # then what is not there is unknown, and the sum says "at least"
    assert [part.missing for part in parts] == [False, True, True, True]
    assert [part.end for part in parts] == [2, None, 2, None]
    for part in parts[1:]:
        assert (part.position, part.offset, part.lag, part.pending, part.time_lag) == (None,) * 5
    assert summary.lag == Lag(2, exact=False)
    assert summary.time_lag is None
    assert summary.missing_partitions == 3
    topic = observe.topic(bus, TOPIC)
    assert (topic.messages, topic.published, topic.missing_partitions) == (4, 4, 2)
    partitions = observe.partitions(bus, TOPIC)
    assert [partition.missing for partition in partitions] == [False, True, False, True]
    assert partitions[1].length is partitions[1].next_offset is partitions[3].first_id is None


@pytest.mark.both_servers
def test_with_all_streams_gone_every_sum_is_unknown(bus: Bus) -> None:
    declare(bus, 2, inventory="key")
    bus.client.call("DEL", stream(bus, 0), stream(bus, 1))
    topic = observe.topic(bus, TOPIC)
    assert (topic.messages, topic.published, topic.last_published) == (None, None, None)
    assert (topic.groups[0].lag, topic.groups[0].pending, topic.groups[0].time_lag) == (None, None, None)


def test_unknown_names_are_errors_and_looking_creates_nothing(bus: Bus) -> None:
    bus.topic("declared-in-code")
    with pytest.raises(UnknownTopic):
        observe.topic(bus, "declared-in-code")
    with pytest.raises(UnknownTopic):
        observe.partitions(bus, "nope")
    with pytest.raises(UnknownTopic):
        observe.groups(bus, "nope")
    with pytest.raises(UnknownTopic):
        observe.latest(bus, "nope")
    with pytest.raises(UnknownTopic):
        observe.message(bus, "nope", 0, "1-1")
    with pytest.raises(UnknownTopic):
        next(observe.tail(bus, "nope", stop=lambda: False))
    with pytest.raises(UnknownTopic):
        observe.group(bus, "nope", GROUP)
    declare(bus, inventory="key")
    with pytest.raises(UnknownGroup):
        observe.group(bus, TOPIC, "nope")
    assert bus.client.call("HKEYS", bus.keys.topics) == [TOPIC.encode()]


# ---------------------------------------------------------------------- topics


@pytest.mark.both_servers
def test_offsets_are_dense_from_zero_and_survive_trimming(bus: Bus) -> None:
    declare(bus, 2)
    add(bus, *range(1, 11))
    bus.client.call("XTRIM", stream(bus), "MAXLEN", 4)
    full, empty = observe.partitions(bus, TOPIC)
    assert (full.length, full.first_offset, full.next_offset) == (4, 6, 10)
    assert (full.first_id, full.last_id) == ("7-1", "10-1")
    assert (empty.length, empty.first_offset, empty.next_offset) == (0, 0, 0)
    assert (empty.first_id, empty.last_id) == (None, None)
    topic = observe.topic(bus, TOPIC)
    assert (topic.messages, topic.published, topic.partitions) == (4, 10, 2)


@pytest.mark.both_servers
def test_a_topic_shows_when_it_was_last_published_to(bus: Bus) -> None:
    declare(bus, 3)
    assert observe.topic(bus, TOPIC).last_published is None
    receipts = [bus.publish(TOPIC, number) for number in range(3)]
    newest = max(id_pair(receipt.id) for receipt in receipts)
    published = observe.topic(bus, TOPIC).last_published
    assert published is not None
    assert round(published.timestamp() * 1000) == newest[0]


# ---------------------------------------------------------------------- workers and server


def enlist(bus: Bus, incarnation: str, groups: list[str] | None) -> None:
    record = {"host": "h1", "pid": 77, "boot": "b", "pidns": "p", "start": 5, "started": 1_700_000_000_000,
              "groups": groups, "processes": 2, "beat": 9}  # fmt: skip
    bus.client.call("HSET", bus.keys.workers, incarnation, orjson.dumps(record))


@pytest.mark.both_servers
def test_workers_show_what_they_serve_and_the_leases_they_hold(bus: Bus) -> None:
    # given an ordered group with three leases (one given back) and an unordered one with two lanes
    declare(bus, 3, inventory="key", mail="none")
    enlist(bus, "w1", None)
    enlist(bus, "w2", ["mail"])
    for partition, lease in enumerate(["w1:7f", "w1:80", "free:81"]):
        bus.client.call("SET", bus.keys.partition(TOPIC, partition).lease(GROUP, "0"), lease)
    add(bus, 1, 2)
    for lane, lease in (("w1.0", "w1:90"), ("w2.0", "w2:91")):
        give(bus, 1, "mail", lane=lane)
        bus.client.call("SET", bus.keys.partition(TOPIC, 0).lease("mail", lane), lease)
    # when they are looked at
    one, two = observe.workers(bus)
    # then the leases are theirs
    assert (one.incarnation, one.groups, one.lanes) == ("w1", None, 3)
    assert (two.incarnation, two.groups, two.lanes) == ("w2", ("mail",), 1)
    assert (one.host, one.pid, one.processes, one.beat) == ("h1", 77, 2, 9)
    assert one.started.timestamp() == 1_700_000_000
    inventory, parts = observe.group(bus, TOPIC, GROUP)
    assert [part.owner for part in parts] == ["w1", "w1", None]
    assert (inventory.workers, inventory.lanes) == (1, 2)
    mail, parts = observe.group(bus, TOPIC, "mail")
    assert [part.owner for part in parts] == [None, None, None]
    assert (mail.workers, mail.lanes) == (2, 2)


@pytest.mark.both_servers
def test_the_server_is_named_by_what_it_is(bus: Bus, request: pytest.FixtureRequest) -> None:
    server = observe.server(bus)
    expected = ("Redis", "7.0.") if "redis7" in request.node.name else ("Valkey", "9.")
    assert (server.kind, server.version[: len(expected[1])]) == expected
    assert server.used_memory > 0
    assert server.max_memory == 0
    assert server.uptime >= timedelta(0)


# ---------------------------------------------------------------------- round trips


@pytest.mark.both_servers
def test_an_overview_of_nothing_is_empty(bus: Bus) -> None:
    overview = observe.overview(bus)
    assert (overview.topics, overview.workers) == ((), ())


def test_an_overview_of_300_topics_takes_at_most_6_round_trips(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given 300 topics with four partitions and two groups each, some lagging
    names = [f"topic-{number:03}" for number in range(300)]
    bus.registry.project(TopicSpec(name=name, partitions=4) for name in names)
    bus.registry.declare_groups(
        GroupSpec(topic=name, name=group, ordering=ordering)
        for name in names
        for group, ordering in (("inventory", "key"), ("mail", "none"))
    )
    for name in names[::3]:
        add(bus, 1, 2, 3, topic=name)
        bus.client.call(
            "XREADGROUP", "GROUP", "inventory", "0", "COUNT", 1, "STREAMS", stream(bus, 0, name), ">"
        )
    # when all is looked at
    trips = Trips(monkeypatch)
    overview = observe.overview(bus)
    # then
    assert len(trips) <= 6
    assert len(overview.topics) == 300
    lags = [group.lag for group in overview.topics[0].groups]
    assert lags == [Lag(2), Lag(3)]


def test_declaring_groups_walks_through_all_that_there_are_once_however_many_topics(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given how often a list of all groups is walked through, and how many round trips are made
    walks = []

    class Walked(list[GroupSpec]):
        def __iter__(self) -> Iterator[GroupSpec]:
            walks.append(len(self))
            return super().__iter__()

    read, look = bus.registry.groups, bus.registry.look
    monkeypatch.setattr(bus.registry, "groups", lambda topic=None: Walked(read(topic)))
    monkeypatch.setattr(bus.registry, "look", lambda: replace(look(), groups=Walked(look().groups)))
    costs = []
    for count in (20, 200):
        names = [f"topic-{count}-{number:03}" for number in range(count)]
        walks.clear()
        trips = Trips(monkeypatch)
        bus.registry.project(TopicSpec(name=name) for name in names)
        bus.registry.declare_groups(GroupSpec(topic=name, name=GROUP) for name in names)
        costs.append((len(walks), len(trips) / count))
    # then neither grows faster than the number of topics
    assert costs[0][0] == costs[1][0] <= 2
    assert costs[1][1] <= costs[0][1] < 8


@pytest.mark.both_servers
def test_counting_adds_a_bounded_number_of_round_trips(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(bus, 4, inventory="key")
    for partition in range(4):
        add(bus, *range(1, 2_001), partition=partition)
        bus.client.call("XGROUP", "SETID", stream(bus, partition), GROUP, "5-1")
    trips = Trips(monkeypatch)
    assert observe.topic(bus, TOPIC).groups[0].lag == Lag(4 * 1_995)
    assert len(trips) <= 6 + ROUNDS


def test_a_topic_of_1024_partitions_is_read_in_pieces_of_bounded_size(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(bus, 1024, **{f"group-{number}": "key" for number in range(5)})
    add(bus, 1, 2, partition=1023)
    trips = Trips(monkeypatch)
    topic = observe.topic(bus, TOPIC)
    assert max(trips.commands) <= 20_000
    assert len(trips) <= 6
    assert (topic.messages, topic.missing_partitions) == (2, 0)
    assert [group.lag for group in topic.groups] == [Lag(2)] * 5
    assert len(observe.partitions(bus, TOPIC)) == 1024
    assert [message.partition for message in observe.latest(bus, TOPIC)] == [1023, 1023]


@pytest.mark.both_servers
def test_looking_changes_nothing(bus: Bus) -> None:
    # given a group with pending messages and a lane
    declare(bus, 2, inventory="key", mail="none")
    add(bus, *range(1, 6))
    give(bus, 2)

    def dump() -> list[bytes]:
        keys = sorted(bus.client.call("KEYS", f"{bus.keys.prefix}:*"))
        return keys + [bus.client.call("DUMP", key) for key in keys]

    before = dump()
    # when everything is looked at
    observe.overview(bus)
    observe.group(bus, TOPIC, GROUP)
    observe.partitions(bus, TOPIC)
    observe.latest(bus, TOPIC)
    observe.message(bus, TOPIC, 0, "1-1")
    next(observe.tail(bus, TOPIC, stop=lambda: False, from_now=False))
    # then every key is as it was
    assert dump() == before


# ---------------------------------------------------------------------- messages


@pytest.mark.both_servers
def test_the_latest_messages_are_merged_newest_first(bus: Bus) -> None:
    # given three partitions, of which one has most of the newest messages
    declare(bus, 3)
    add(bus, *range(1, 100, 2), partition=0)
    add(bus, 2, 4, 6, partition=1)
    add(bus, *range(100, 160), partition=2)
    # then the newest of all come first
    assert [message.id for message in observe.latest(bus, TOPIC, 3)] == ["159-1", "158-1", "157-1"]
    newest = observe.latest(bus, TOPIC, 70)
    assert [id_pair(message.id)[0] for message in newest] == [*range(159, 99, -1), *range(99, 79, -2)]
    assert newest[0].value == 159
    assert newest[0].partition == 2
    # and those of one partition alone
    assert [message.id for message in observe.latest(bus, TOPIC, partition=1)] == ["6-1", "4-1", "2-1"]
    assert observe.latest(bus, TOPIC, partition=9) == observe.latest(bus, TOPIC, 0) == []
    assert len(observe.latest(bus, TOPIC, 1_000)) == 113


@pytest.mark.both_servers
def test_one_message_is_found_by_its_id(bus: Bus) -> None:
    declare(bus, 2)
    receipt = bus.publish(TOPIC, {"sku": "A1"}, key="A1", headers={"tenant": "de"})
    found = observe.message(bus, TOPIC, receipt.partition, receipt.id)
    assert found is not None
    assert (found.value, found.key, dict(found.headers)) == ({"sku": "A1"}, "A1", {"tenant": "de"})
    assert (found.topic, found.partition, found.id) == (TOPIC, receipt.partition, receipt.id)


@pytest.mark.parametrize("id", ["", "-", "+", "1", "1-1-1", "x-1", "99999999999999999999-0", "9-9"])
def test_a_message_that_is_not_there_is_none(bus: Bus, id: str) -> None:
    declare(bus)
    add(bus, 1)
    assert observe.message(bus, TOPIC, 0, id) is None
    assert observe.message(bus, TOPIC, 1, "1-1") is None
    assert observe.message(bus, TOPIC, -1, "1-1") is None


class Follower:
    """Tails a topic in a thread."""

    def __init__(self, bus: Bus, *, from_now: bool = True) -> None:
        self.asked = threading.Event()
        self.stopped = threading.Event()
        self.found: list[Message] = []
        self._tail = observe.tail(bus, TOPIC, stop=self._stop, from_now=from_now)
        self._thread = threading.Thread(target=self._follow)

    def _stop(self) -> bool:
        self.asked.set()
        return self.stopped.is_set()

    def _follow(self) -> None:
        for message in self._tail:
            self.found.append(message)

    def __enter__(self) -> Follower:
        self._thread.start()
        assert self.asked.wait(20)  # from now on nothing new is missed
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.mark.both_servers
def test_a_tail_sees_what_comes_after_it_began_and_ends_when_told(bus: Bus) -> None:
    declare(bus, 2)
    add(bus, 1, 2, partition=0)
    with Follower(bus) as follower:
        add(bus, 3, 5, partition=0)
        add(bus, 4, partition=1)
        wait_until(lambda: len(follower.found) == 3, what="three messages")
    assert sorted(message.id for message in follower.found) == ["3-1", "4-1", "5-1"]


@pytest.mark.both_servers
def test_a_tail_from_the_beginning_sees_all_in_order_and_goes_on(bus: Bus) -> None:
    declare(bus, 2)
    add(bus, *range(1, 1_501), partition=0)
    with Follower(bus, from_now=False) as follower:
        wait_until(lambda: len(follower.found) == 1_500, what="the old messages")
        add(bus, 1, partition=1)
        wait_until(lambda: len(follower.found) == 1_501, what="the new one")
    assert [message.value for message in follower.found] == [*range(1, 1_501), 1]


def test_a_tail_outlives_quiet_times_that_are_longer_than_the_timeout(bus: Bus) -> None:
    # given a bus whose calls give up after a tenth of a second
    declare(bus)
    hasty = Bus(bus.settings.url, prefix=bus.settings.prefix, timeout=0.1)
    with Follower(hasty) as follower:
        # when nothing comes for many times that
        quiet_since = time.monotonic()
        wait_until(lambda: time.monotonic() > quiet_since + 1.5, what="a quiet second and a half")
        add(bus, 1)
        # then what comes next is still seen
        wait_until(lambda: follower.found, what="the message")
    hasty.close()


def test_a_tail_follows_new_partitions(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bus.observe.messages.SPEC_SECONDS", 0)
    declare(bus)
    with Follower(bus) as follower:
        bus.registry.project([TopicSpec(name=TOPIC, partitions=3)])
        add(bus, 1, partition=2)
        wait_until(lambda: follower.found, what="the message")
    assert follower.found[0].partition == 2


# ---------------------------------------------------------------------- delayed messages


@pytest.mark.both_servers
def test_a_topic_says_how_many_messages_wait_and_when_the_next_is_due(bus: Bus) -> None:
    declare(bus, 3)
    declare(bus, 1, "other")
    assert (observe.topic(bus, TOPIC).delayed, observe.topic(bus, TOPIC).next_due) == (0, None)
    first = datetime(2040, 1, 31, 12, tzinfo=UTC)
    for number in range(10):
        bus.publish(TOPIC, number, key=str(number), at=first + timedelta(hours=9 - number))

    for found in (observe.topic(bus, TOPIC), observe.overview(bus).topics[0]):
        assert (found.delayed, found.next_due) == (10, first)
        assert found.messages == 0
    assert observe.overview(bus).topics[1].delayed == 0
    # What nobody can know is unknown, and spoils nothing else
    bus.client.call("SET", bus.keys.partition("other", 0).delayed, "foreign")
    assert (observe.topic(bus, "other").delayed, observe.topic(bus, "other").messages) == (None, 0)
