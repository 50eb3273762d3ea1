"""Turns: one round trip settles and fetches, and whoever has lost the lease can do neither."""

from __future__ import annotations

import uuid

import pytest

from bus.client import Bus
from bus.consuming.blame import GroupGone
from bus.consuming.lane import Lane
from bus.consuming.lane_state import LaneState
from bus.consuming.mending import MESSAGES_A_SCRIPT, RELEASE
from bus.consuming.sizes import FETCH_BYTES
from bus.consuming.turn import Turns
from bus.errors import BusUnavailable, ReplyLost, StaleLease
from bus.format.keys import Keys
from bus.format.lane_id import LaneId
from bus.streams import commands, history
from bus.streams.connect import Endpoint
from bus.streams.wire import Link
from bus.topics.registry import GroupSpec
from bus.upkeep import losses
from bus.values import Message, TopicSpec
from tests.waiting import wait_until

pytestmark = pytest.mark.both_servers
TOPIC, GROUP = "orders", "stock"


class CountingEndpoint(Endpoint):
    """Counts writes and the commands in them; breaks the connection when told to."""

    def __init__(self, url):
        super().__init__(url)
        endpoint = self
        self.writes: list[int] = []
        self.cut = ""

        class Counting(Link):
            __slots__ = ()

            def send(self, packed, replies):
                how, endpoint.cut = endpoint.cut, ""
                endpoint.writes.append(replies)
                if how == "before":
                    self.close()
                    raise ReplyLost("cut")
                super().send(packed, replies)
                if how == "after":
                    while self.pending:
                        self.receive()
                    self.close()
                    raise ReplyLost("cut")

        self._counting = Counting

    def connect(self, *, timeout=None):
        link = super().connect(timeout=timeout)
        link.__class__ = self._counting
        return link


class World:
    """A topic with one group, and turns on its lanes as one slice would make them."""

    def __init__(self, server, partitions=1, ordering="key"):
        self.bus = Bus(server.url, prefix=f"t{uuid.uuid4().hex[:10]}")
        self.bus.registry.project([TopicSpec(name=TOPIC, partitions=partitions)])
        self.bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP, ordering=ordering)])
        self.endpoint = CountingEndpoint(server.url)
        self.ordering = ordering
        self.lanes = [self.lane(partition) for partition in range(partitions)]
        self.opened: list[Turns] = []
        self.turns = self.open(self.lanes)

    def keys(self, partition=0):
        return Keys(self.bus.settings.prefix).partition(TOPIC, partition)

    def lease(self, value, partition=0):
        self.bus.client.call("SET", self.keys(partition).lease(GROUP, "0"), value)

    def lane(self, partition, lease="me:1"):
        self.lease(lease, partition)
        return Lane(LaneState(LaneId(TOPIC, partition, GROUP), lease, self.ordering), self.keys(partition))

    def open(self, lanes, held_limit=100):
        turns = Turns(self.endpoint, lanes, held_limit=held_limit, dead_limit=100)
        self.opened.append(turns)
        turns.open()
        return turns

    def publish(self, count, key=None):
        return [self.bus.publish(TOPIC, number, key=key).id for number in range(count)]

    def take_due(self) -> list[tuple[Lane, Message]]:
        """What is fetched as soon as something is: a retry is due at the next millisecond of the server."""
        return wait_until(self.take, 10, "a due retry", 0.001)

    def take(self, count=1000):
        """(lane, message) of the next turn that has any, or nothing."""
        for _ in range(3):
            batch = [(lane, message) for lane, messages in self.turns.take(count) for message in messages]
            if batch:
                return batch
        return []

    def pending(self, partition=0):
        return self.bus.client.call("XPENDING", self.keys(partition).stream, GROUP)[0]

    def commands_run(self):
        """Commands that the server has executed, scripts' own included."""
        stats = self.bus.client.call("INFO", "commandstats").decode()
        lines = [line for line in stats.splitlines() if line.startswith("cmdstat_")]
        return {
            line.split(":")[0].removeprefix("cmdstat_"): int(line.split("calls=")[1].split(",")[0])
            for line in lines
        }

    def close(self):
        for turns in self.opened:
            if link := turns.close():
                link.close()
        self.bus.close()


@pytest.fixture
def world(server):
    world = World(server)
    yield world
    world.close()


# ---------------------------------------------------------------------- what a turn costs


@pytest.mark.parametrize("size", [1, 10, 400])
def test_a_batch_of_done_messages_costs_one_round_trip_and_at_most_8_commands(world, size):
    # Given a batch in hand, whose messages are all done
    world.publish(size * 2)
    for lane, message in world.take(size):
        lane.done(message)
    before, world.endpoint.writes = world.commands_run(), []
    # When the turn settles it and fetches the next
    batch = world.turns.take(size)
    after = world.commands_run()
    assert sum(len(messages) for _, messages in batch) == size
    # Then that was one write and at most 8 commands, by our count and by the server's
    assert len(world.endpoint.writes) == 1
    assert world.endpoint.writes[0] <= 8
    run = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert sum(run.values()) - run.get("info", 0) <= 8
    assert run["xack"] == run["xreadgroup"] == 1


def test_a_turn_over_several_lanes_is_one_round_trip_too(server):
    world = World(server, partitions=8)
    for number in range(64):
        world.bus.publish(TOPIC, number, key=f"k{number}")
    for lane, message in world.take():
        lane.done(message)
    world.endpoint.writes = []
    world.turns.take(100)
    assert len(world.endpoint.writes) == 1
    world.turns.settle()
    assert sum(world.pending(partition) for partition in range(8)) == 0
    world.close()


# ---------------------------------------------------------------------- the fence


def test_who_has_lost_the_lease_can_neither_settle_nor_fetch(world):
    world.publish(2)
    ((lane, message),) = world.take(1)
    lane.done(message)
    world.lease("you:1")
    with pytest.raises(StaleLease):
        world.turns.take(1)
    assert world.pending() == 1
    (group,) = [
        commands.fields_of(raw) for raw in world.bus.client.call("XINFO", "GROUPS", world.keys().stream)
    ]
    assert group["last-delivered-id"].decode() == message.id


@pytest.mark.parametrize("outcome", ["retry", "dead", "note"])
def test_who_has_lost_the_lease_cannot_record_a_failure_either(world, outcome):
    world.publish(1)
    ((lane, message),) = world.take()
    if outcome == "retry":
        lane.retry(message, 0, "no", 1)
    elif outcome == "dead":
        lane.dead(message, "no", "no", 1)
    else:
        lane.note(message, "no", 1)
    world.lease("you:1")
    with pytest.raises(StaleLease):
        world.turns.take(1)
    keys = world.keys()
    assert world.pending() == 1
    assert world.bus.client.call("EXISTS", keys.retry(GROUP), keys.dead(GROUP)) == 0
    assert world.bus.client.call("HKEYS", keys.state(GROUP)) == [b"era"]


def test_an_answer_that_lay_there_while_the_process_was_frozen_proves_nothing_about_now(world, monkeypatch):
    # Given a process that is frozen for a minute between sending a turn and reading its reply
    assert not world.take()  # there are no left-overs
    now = [1000.0]
    monkeypatch.setattr(world.turns, "_clock", lambda: now[0])
    receive = Link.receive

    def receive_late(link):
        now[0] = 1060.0
        return receive(link)

    world.publish(2)
    monkeypatch.setattr(Link, "receive", receive_late)
    assert world.turns.take(10)
    # Then its leases count as proven a minute ago, so it asks before it runs what it was given
    assert world.turns.proved == 1000.0


def test_a_handler_can_ask_whether_its_lease_is_still_valid(world):
    world.publish(2)
    (_, message), (_, other) = world.take()
    assert message.lease_valid()
    world.bus.client.call("SET", world.keys().lease(GROUP, "0"), "another:1")
    assert not message.lease_valid()
    assert not other.lease_valid()
    # And the slice ends as a stale one, whatever is asked of it next
    with pytest.raises(StaleLease):
        world.turns.prove()


def test_a_lease_that_vanished_is_a_lost_one(world):
    world.bus.client.call("DEL", world.keys().lease(GROUP, "0"))
    with pytest.raises(StaleLease):
        world.turns.take(1)


def test_a_stale_slice_learns_it_at_its_opening_before_it_fetches(world):
    world.publish(1)
    stale = Lane(LaneState(LaneId(TOPIC, 0, GROUP), "me:0", "key"), world.keys())
    with pytest.raises(StaleLease):
        world.open([stale])
    assert world.pending() == 0


def test_a_lost_lane_does_not_hold_up_the_others_of_its_slice(server):
    world = World(server, partitions=2)
    for number in range(20):
        world.bus.publish(TOPIC, number, key=f"k{number}")
    batch = world.take()
    for lane, message in batch:
        lane.done(message)
    world.lease("you:1", 0)
    world.turns.settle()
    assert world.turns.lanes == [world.lanes[1]]
    assert world.lanes[0].lost
    assert world.pending(0) > 0
    assert world.pending(1) == 0
    world.close()


def test_a_lease_that_was_written_with_the_same_value_refuses_one_turn_and_loses_nothing(world):
    world.publish(2)
    ((lane, message),) = world.take(1)
    lane.done(message)
    world.lease("me:1")
    assert len(world.take(10)) == 1
    assert world.pending() == 1


def test_a_vanished_group_is_told_apart(world):
    world.publish(1)
    world.take()
    world.bus.client.call("XGROUP", "DESTROY", world.keys().stream, GROUP)
    with pytest.raises(GroupGone):
        world.turns.take(1)
    with pytest.raises(GroupGone):
        world.open([Lane(LaneState(LaneId(TOPIC, 0, GROUP), "me:1", "key"), world.keys())])


# ---------------------------------------------------------------------- lost replies


@pytest.mark.parametrize("cut", ["before", "after"])
def test_after_a_lost_reply_what_was_done_is_settled_and_the_rest_is_handed_out_once(world, cut):
    ids = world.publish(10)
    seen = []
    for lane, message in world.take(5):
        seen.append(message.id)
        lane.done(message)
    world.endpoint.cut = cut
    with pytest.raises(BusUnavailable):
        world.turns.take(5)
    world.turns.reopen()
    while batch := world.take(5):
        for lane, message in batch:
            seen.append(message.id)
            lane.done(message)
    world.turns.settle()
    assert seen == ids
    assert world.pending() == 0


@pytest.mark.parametrize("cut", ["before", "after"])
def test_after_a_lost_reply_a_dead_letter_is_there_once(world, cut):
    world.publish(1)
    ((lane, message),) = world.take()
    lane.dead(message, "no", "no", 1)
    world.endpoint.cut = cut
    with pytest.raises(BusUnavailable):
        world.turns.take(1)
    world.turns.reopen()
    assert world.bus.client.call("XLEN", world.keys().dead(GROUP)) == 1
    assert world.pending() == 0


def test_a_lease_that_was_lost_while_the_connection_was_is_found_out(world):
    world.publish(1)
    ((lane, message),) = world.take()
    lane.done(message)
    world.endpoint.cut = "before"
    with pytest.raises(BusUnavailable):
        world.turns.take(1)
    world.lease("you:1")
    with pytest.raises(StaleLease):
        world.turns.reopen()
    assert world.pending() == 1


# ---------------------------------------------------------------------- left-overs


def test_left_overs_come_before_anything_new_and_in_order(world):
    ids = world.publish(3)
    world.take(2)
    world.turns.lanes[0].recovering = True
    world.turns.lanes[0].position = "-"
    seen = []
    while batch := world.take(10):
        for lane, message in batch:
            seen.append(message.id)
            lane.done(message)
    assert seen == ids


def test_suspects_are_handed_out_one_by_one_and_then_no_more_suspected(world):
    ids = world.publish(3)
    world.take()
    world.bus.client.call("HSET", world.keys().state(GROUP), "suspect:0", ids[-1])
    world.lease("me:2")
    world.lanes = [Lane(LaneState(LaneId(TOPIC, 0, GROUP), "me:2", "key"), world.keys())]
    world.turns = world.open(world.lanes)
    seen = []
    while batch := world.take():
        assert len(batch) == 1
        for lane, message in batch:
            assert lane.is_suspect(message)
            seen.append(message.id)
            lane.done(message)
    assert seen == ids
    assert world.bus.client.call("HKEYS", world.keys().state(GROUP)) == [b"era"]


def test_pending_messages_that_were_trimmed_are_counted_and_do_not_hold_anything_up(world):
    ids = world.publish(4)
    world.take(3)
    world.bus.client.call("XTRIM", world.keys().stream, "MINID", ids[2])
    lane = world.turns.lanes[0]
    lane.recovering, lane.position = True, "-"
    seen = []
    while batch := world.take():
        for each, message in batch:
            seen.append(message.id)
            each.done(message)
    world.turns.settle()
    assert seen == ids[2:]
    assert world.pending() == 0
    assert world.bus.client.call("HGET", world.keys().state(GROUP), "trimmed") == b"2"


# ---------------------------------------------------------------------- retries


def test_messages_behind_a_failing_one_wait_and_come_in_order_after_it(world):
    ids = world.publish(4, key="A")
    batch = world.take()
    lane, head = batch[0]
    lane.retry(head, 0, "no", 1)
    for _, message in batch[1:]:
        assert lane.must_wait(message)
        lane.hold(message)
    seen = []

    def go_on():
        for _, message in world.take():
            assert not lane.must_wait(message)
            seen.append((message.id, message.attempt))
            lane.done(message)
        return len(seen) == 4

    wait_until(go_on, 10, "all of the key", 0.001)
    assert seen == [(ids[0], 2), *((id, 1) for id in ids[1:])]
    world.turns.settle()
    assert world.pending() == 0
    assert world.bus.client.call("HKEYS", world.keys().state(GROUP)) == [b"era"]


def test_what_fails_again_after_its_release_keeps_all_later_ones_of_its_key_behind_it(world):
    # Given messages that were released after their head, of which only the first two are in hand
    ids = world.publish(5, key="A")
    (lane, head), *others = world.take()
    lane.retry(head, 0, "no", 1)
    for _, message in others:
        lane.hold(message)
    ((_, head),) = world.take_due()
    lane.done(head)
    released = world.take_due()
    # When the first fails again, the second is held, and the slice ends there
    lane.retry(released[0][1], 0, "no", 1)
    lane.hold(released[1][1])
    seen = []

    def go_on():
        for _, message in world.take():
            if lane.must_wait(message):
                lane.hold(message)
            else:
                seen.append(message.id)
                lane.done(message)
        return len(seen) == 4

    wait_until(go_on, 10, "the others", 0.001)
    # Then none of the others overtakes it
    assert seen == ids[1:]


def test_at_the_held_limit_nothing_new_is_fetched(world):
    world.publish(3, key="A")
    world.turns.held_limit = 2
    (lane, head), *others = world.take()
    lane.retry(head, 60, "no", 1)
    for _, message in others:
        lane.hold(message)
    world.turns.settle()
    world.publish(1, key="B")
    assert world.take() == []
    assert not lane.may_fetch(2)


def test_memory_that_is_full_stops_no_settling_fetching_retrying_or_dead_lettering(server, world):
    world.publish(4, key="A")
    batch = world.take(3)
    memory = world.bus.client.call("CONFIG", "GET", "maxmemory")[1]
    world.bus.client.call("CONFIG", "SET", "maxmemory", 1)
    try:
        lane, first = batch[0]
        lane.done(first)
        lane.dead(batch[1][1], "no", "no", 1)
        lane.retry(batch[2][1], 60, "no", 1)
        ((_, last),) = world.take()
        lane.hold(last)
        world.turns.settle()
    finally:
        world.bus.client.call("CONFIG", "SET", "maxmemory", memory)
    keys = world.keys()
    assert world.pending() == 2
    assert world.bus.client.call("XLEN", keys.dead(GROUP)) == 1
    assert world.bus.client.call("ZCARD", keys.retry(GROUP)) == 1
    assert world.bus.client.call("ZCARD", keys.held(GROUP)) == 1


def test_messages_know_the_era_of_their_group_and_a_new_stream_begins_another(world):
    def era():
        return world.bus.client.call("HGET", world.keys().state(GROUP), "era").decode()

    world.publish(1)
    ((lane, message),) = world.take()
    first = era()
    assert message._era == lane.era == first
    lane.done(message)

    # when the stream vanishes, is made again, and the slice that runs fetches from it
    world.bus.client.call("DEL", world.keys().stream)
    world.publish(1)
    assert era() != first
    ((_lane, message),) = world.take()

    # then it knows that this is another message, whatever its id
    assert message._era == era()


def test_a_slice_on_a_lane_that_it_knows_reads_the_era_again(world):
    world.publish(1)
    ((lane, message),) = world.take()
    lane.done(message)
    world.turns.settle()
    world.turns.close().close()
    world.bus.client.call("DEL", world.keys().stream)
    world.publish(1)
    lane.last_id = None
    lane.seen = None
    world.turns = world.open([lane])
    ((_lane, message),) = world.take()
    assert message._era == world.bus.client.call("HGET", world.keys().state(GROUP), "era").decode()


def test_what_was_trimmed_ahead_of_a_group_is_counted_before_its_new_owner_reads_on(world):
    # given a group that was given the first of ten messages, when upkeep looked last
    ids = world.publish(10)
    assert [message.id for _, message in world.take(1)] == ids[:1]
    losses.look(world.bus)

    # when somebody trims all but three, and a new owner reads on before upkeep looks again
    world.bus.client.call("XTRIM", world.keys().stream, "MAXLEN", 3)
    if link := world.turns.close():
        link.close()
    world.turns = world.open([world.lane(0, lease="other:1")])
    assert [message.id for _, message in world.take(1)] == ids[7:8]

    # then the six are counted exactly
    state = world.keys().state(GROUP)
    assert world.bus.client.call("HMGET", state, "lost", "lost_maybe") == [b"6", b"0"]
    assert losses.look(world.bus) == []


# ---------------------------------------------------------------------- what is known, and over which link


def known_over(world):
    """Leave a lane as a slice leaves it for the next, with a failing key; its connection."""
    world.publish(3, key="A")
    batch = world.take()
    lane, head = batch[0]
    lane.retry(head, 60, "no", 1)
    for _, message in batch[1:]:
        lane.hold(message)
    world.turns.settle()
    return world.turns.close()


def test_what_is_known_of_a_lane_counts_over_the_same_connection(world):
    link = known_over(world)
    lane = world.lanes[0]
    world.turns = Turns(world.endpoint, [lane], held_limit=100, dead_limit=100)
    world.opened.append(world.turns)
    world.endpoint.writes = []
    world.turns.open(link)
    assert world.endpoint.writes == [6]  # UNWATCH WATCH MGET TIME, the first retry, the era
    assert lane.failing
    assert not lane.recovering


def test_over_another_connection_a_lane_is_read_anew_though_lease_and_position_are_the_same(world):
    known_over(world).close()
    lane = world.lanes[0]
    # Given a server that has none of what the lane remembers
    keys = world.keys()
    world.bus.client.call("DEL", keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP))
    # When the next slice has another connection
    world.turns = world.open([lane])
    assert not lane.failing
    assert (lane.retrying, lane.held) == (0, 0)
    # Then, as this is the same history of the same server, only a look at the position was needed
    assert not lane.recovering


def test_in_another_history_of_the_server_left_overs_are_looked_for(world):
    known_over(world).close()
    lane = world.lanes[0]
    lane.history = 12345
    world.turns = world.open([lane])
    assert lane.recovering
    assert lane.history == world.turns.need_link().history != 0


def test_a_server_that_does_not_say_which_it_is_is_never_taken_for_the_same(world):
    known_over(world).close()
    lane = world.lanes[0]
    with_rights = world.bus.client
    with_rights.call("ACL", "SETUSER", "default", "-info")
    try:
        world.turns = world.open([lane])
    finally:
        with_rights.call("ACL", "SETUSER", "default", "+info")
    assert world.turns.need_link().history == 0
    assert lane.recovering


def test_a_server_has_another_history_after_a_restart_and_after_it_was_a_replica(own_server):
    endpoint = Endpoint(own_server.url)

    def ask():
        link = endpoint.connect()
        try:
            return history.ask(link)
        finally:
            link.close()

    first = ask()
    assert first == ask() != 0
    bus = Bus(own_server.url)
    bus.client.call("REPLICAOF", "127.0.0.1", 1)
    bus.client.call("REPLICAOF", "NO", "ONE")
    second = ask()
    bus.close()
    own_server.restart()
    assert len({first, second, ask()}) == 3


# ---------------------------------------------------------------------- held back behind nothing


def test_a_lane_with_ten_thousand_messages_held_behind_nothing_is_put_right_in_pages(world):
    # Given ten keys with a failing first message each, whose retries and states are lost
    for number in range(10_000):
        world.bus.publish(TOPIC, number, key=f"k{number % 10}")
    world.turns.held_limit = 20_000
    while batch := world.take():
        for lane, message in batch:
            lane.hold(message) if lane.must_wait(message) else lane.retry(message, 60, "no", 1)
    world.turns.settle()
    keys = world.keys()
    call = world.bus.client.call
    assert call("ZCARD", keys.held(GROUP)) == 9_990
    call("DEL", keys.retry(GROUP), keys.state(GROUP))
    world.turns.close().close()
    before = world.commands_run()
    # When the lane is taken over
    world.lease("me:2")
    world.lanes = [Lane(LaneState(LaneId(TOPIC, 0, GROUP), "me:2", "key"), keys)]
    world.turns = world.open(world.lanes, held_limit=20_000)
    after = world.commands_run()
    # Then no script looked at more than a page of them, or let more than 150 go
    scripts = sum(after.get(name, 0) - before.get(name, 0) for name in ("eval", "evalsha"))
    assert scripts >= 9_990 / MESSAGES_A_SCRIPT + 10 / RELEASE
    assert after["xpending"] - before["xpending"] < 2 * 10_000
    assert call("ZCARD", keys.retry(GROUP)) == 150
    # And all are handled, in order
    seen = []

    def go_on():
        for lane, message in world.take():
            if lane.must_wait(message):
                lane.hold(message)
            else:
                seen.append(message.value)
                lane.done(message)
        return len(seen) == 10_000

    wait_until(go_on, 30, "all of the keys", 0.001)
    for number in range(10):
        own = [value for value in seen if value % 10 == number]
        assert own == sorted(own)


@pytest.mark.parametrize("sick", [0, 1, 3])
def test_round_trips_of_putting_right_do_not_grow_with_what_is_healthy(server, sick):
    def writes(healthy):
        """Of a takeover of so many lanes with waiting messages that fit together, and of the sick ones."""
        world = World(server, partitions=sick + healthy)
        call = world.bus.client.call
        for lane in world.lanes:
            for number in range(4):
                call("XADD", lane.keys.stream, f"{number + 1}-0", "v", "1", "k", "a")
        while batch := world.take():
            for lane, message in batch:
                lane.hold(message) if lane.must_wait(message) else lane.retry(message, 60, "no", 1)
        world.turns.settle()
        for lane in world.lanes:
            assert call("ZCARD", lane.keys.held(GROUP)) == 3
        for lane in world.lanes[:sick]:
            call("DEL", lane.keys.retry(GROUP), lane.keys.state(GROUP))
        world.turns.close().close()
        lanes = [world.lane(number, f"me:{number + 2}") for number in range(sick + healthy)]
        world.endpoint.writes.clear()
        world.open(lanes, held_limit=1000)
        assert [lane.retrying for lane in lanes] == [3] * sick + [
            1
        ] * healthy  # those of the sick were let go
        world.close()
        return len(world.endpoint.writes)

    writes(healthy=1)  # from here on the server knows the scripts
    assert writes(healthy=1) == writes(healthy=12)


# ---------------------------------------------------------------------- large messages

#: Nearly as large as a message may be.
LARGE = "x" * ((1 << 20) - 100)


def size_of(batch) -> int:
    return sum(len(part) for _, messages in batch for message in messages for part in message.raw.values())


def work_off(world, *, count=500):
    """Handle all that comes, connecting again where the connection breaks, as a slice does; the sizes of the
    batches, and how often it broke."""
    sizes, breaks, empty = [], 0, 0
    while empty < 3:
        try:
            batch = world.turns.take(count)
        except BusUnavailable:
            breaks += 1
            world.turns.reopen()
            continue
        for lane, messages in batch:
            for message in messages:
                lane.done(message)
        sizes.append(size_of(batch))
        empty = 0 if sizes[-1] or any(lane.recovering for lane in world.turns.lanes) else empty + 1
    world.turns.settle()
    return sizes, breaks


@pytest.mark.parametrize("partitions", [1, 8])
def test_large_messages_after_small_ones_come_in_batches_of_bounded_bytes(server, partitions):
    # Given that full batches of small messages are fetched
    world = World(server, partitions=partitions)
    world.bus.publish_many(TOPIC, range(3000), key=str)
    sizes, breaks = work_off(world)
    assert breaks == 0
    # When many large ones come
    world.bus.publish_many(TOPIC, [LARGE] * 100)
    sizes, breaks = work_off(world)
    # Then no batch has more bytes than a turn should have, but for a message of each lane; the reply that had
    # was given up once, and nothing is lost or handled twice
    assert max(sizes) <= FETCH_BYTES + partitions * len(LARGE)
    assert sum(sizes) >= 100 * len(LARGE)
    assert breaks == 1
    assert all(world.pending(number) == 0 for number in range(partitions))
    # And it stays so
    world.bus.publish_many(TOPIC, [LARGE] * 60)
    sizes, breaks = work_off(world)
    assert max(sizes) <= FETCH_BYTES + len(LARGE)
    assert breaks == 0
    world.close()


def test_one_message_that_is_larger_than_all_bounds_comes_too(server):
    # Given a foreign message of 20 MiB, behind a large one
    world = World(server)
    world.bus.client.call("XADD", world.keys().stream, "*", "v", LARGE)
    world.bus.client.call("XADD", world.keys().stream, "*", "v", "x" * (20 << 20))
    world.bus.client.call("XADD", world.keys().stream, "*", "v", "1")
    sizes, breaks = work_off(world)
    assert sum(sizes) == len(LARGE) + (20 << 20) + 1
    assert breaks <= 2
    assert world.pending() == 0
    world.close()
