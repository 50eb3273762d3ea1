"""The Lua scripts do what their headers say, on both families of servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from hashlib import sha1
from itertools import count
from typing import Any

import orjson
import pytest

from bus.consuming.outcomes import Outcomes
from bus.errors import BusFull, ServerError
from bus.format import codec
from bus.format.keys import Keys, PartitionKeys, pad_id
from bus.format.partition import key_hash
from bus.streams import commands
from bus.streams.connect import Client
from bus.topics import making
from bus.topics.registry import GroupSpec
from bus.values import Message
from tests.waiting import wait_until

pytestmark = pytest.mark.both_servers

GROUP, LANE, LEASE = "inventory", "0", "worker-1:1"


class Partition:
    """One partition with its scripts, as a worker of the group "inventory" sees it."""

    def __init__(self, client: Client, keys: PartitionKeys) -> None:
        self.client = client
        self.keys = keys
        self._eras = count(1)

    # -- state

    def add(self, *values: str, key: str = "A1") -> list[str]:
        """Messages with the ids 1-0, 2-0, …; their ids."""
        ids = []
        for value in values:
            last = commands.fields_of(self.client.call("XINFO", "STREAM", self.keys.stream))[
                "last-generated-id"
            ]
            wanted = f"{int(last.split(b'-')[0]) + 1}-0"
            self.client.call("XADD", self.keys.stream, wanted, "v", value, "k", key)
            ids.append(wanted)
        return ids

    def fetch(self, count: int = 100, lane: str = LANE) -> list[str]:
        reply = self.client.call(
            "XREADGROUP", "GROUP", GROUP, lane, "COUNT", count, "STREAMS", self.keys.stream, ">"
        )
        return [entry[0].decode() for entry in reply[0][1]] if reply else []

    def pending(self, lane: str | None = None) -> list[str]:
        rows = self.client.call(
            "XPENDING", self.keys.stream, GROUP, "-", "+", 1000, *([lane] if lane else [])
        )
        return [row[0].decode() for row in rows]

    def groups(self) -> set[bytes]:
        """The names of those that there are."""
        reply = self.client.pipe([("XINFO", "GROUPS", self.keys.stream)])[0]
        return set() if isinstance(reply, ServerError) else {commands.fields_of(raw)["name"] for raw in reply}

    def group(self, name: str = GROUP) -> dict[str, Any]:
        groups = map(commands.fields_of, self.client.call("XINFO", "GROUPS", self.keys.stream))
        return next(group for group in groups if group["name"] == name.encode())

    def retrying(self) -> list[str]:
        return [id.decode() for id in self.client.call("ZRANGE", self.keys.retry(GROUP), 0, -1)]

    def held(self) -> list[str]:
        return [member.decode() for member in self.client.call("ZRANGE", self.keys.held(GROUP), 0, -1)]

    def state(self) -> dict[str, Any]:
        """What is kept of messages; the era of the group is none of it."""
        found = commands.fields_of(self.client.call("HGETALL", self.keys.state(GROUP)))
        return {name: value for name, value in found.items() if name != "era"}

    def dead(self) -> list[dict[str, Any]]:
        return [
            commands.fields_of(fields)
            for _, fields in self.client.call("XRANGE", self.keys.dead(GROUP), "-", "+")
        ]

    def everything(self) -> list[Any]:
        """All that a settle can change, but for due times."""
        return [self.pending(), self.retrying(), self.held(), self.state(), self.dead(), self.group()]

    def now(self) -> int:
        """Milliseconds by the server's clock."""
        seconds, micros = self.client.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    # -- scripts

    def ensure(self, *pairs: str) -> int:
        """Groups and where they begin; all that is to be counted or given back is. How many are new."""
        before = self.groups()
        named = zip(pairs[::2], pairs[1::2], strict=True)
        groups = [GroupSpec(topic="orders", name=name, start=start) for name, start in named]
        for trouble in making.make(self.client, f"era-{next(self._eras)}", {self.keys: groups})[0]:
            raise trouble
        return len(self.groups() - before)

    def era(self, group: str = GROUP) -> str | None:
        raw = self.client.call("HGET", self.keys.state(group), "era")
        return raw.decode() if raw else None

    def lease(self, old: str, new: str, suspect: str = "", ordering: str = "") -> list[Any]:
        keys = [
            self.keys.lease(GROUP, LANE), self.keys.stream, self.keys.state(GROUP), self.keys.retry(GROUP),
            self.keys.held(GROUP),
        ]  # fmt: skip
        reply: list[Any] = commands.run(
            self.client, "lease", keys, [old, new, GROUP, LANE, suspect, ordering]
        )
        return reply

    def turn(
        self, *, lease: str = LEASE, fetch: int = 0, dead_limit: int = 100, **outcomes: Sequence[Any]
    ) -> Any:
        kinds = [field.name for field in fields(Outcomes)]
        keys = self.keys
        names = [keys.stream, keys.lease(GROUP, LANE), keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP)]
        packed = orjson.dumps({kind: outcomes.get(kind, []) for kind in kinds})
        names += [keys.dead(GROUP), keys.mark(GROUP)]
        return commands.run(self.client, "turn", names, [lease, GROUP, LANE, fetch, dead_limit, packed, ""])

    def recover(
        self, start: str = "-", count: int = 100, *, lease: str = LEASE, ordering: str = "key"
    ) -> Any:
        keys = self.keys
        names = [keys.stream, keys.lease(GROUP, LANE), keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP)]
        return commands.run(self.client, "recover", names, [lease, GROUP, LANE, start, count, ordering])

    def reorder(self, wanted: str, effect: str, *lanes: str) -> Any:
        keys = self.keys
        names = [keys.stream, keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP)]
        names += [keys.lease(GROUP, lane) for lane in lanes]
        return commands.run(self.client, "reorder", names, [GROUP, wanted, effect, "free:1", *lanes])

    def lanes(self) -> dict[str, int]:
        """Consumer names, each with how much is pending there."""
        known = [
            commands.fields_of(raw) for raw in self.client.call("XINFO", "CONSUMERS", self.keys.stream, GROUP)
        ]
        return {each["name"].decode(): each["pending"] for each in known}

    def due(self, count: int = 100, *, lease: str = LEASE, lane: str = LANE, claim: str = "") -> Any:
        keys = self.keys
        names = [keys.stream, keys.lease(GROUP, LANE), keys.retry(GROUP), keys.state(GROUP)]
        return commands.run(self.client, "due", names, [lease, GROUP, lane, count, claim])

    def trim(self, cutoff: int, *groups: str) -> int:
        now = int(time.time() * 1000)
        own = [self.keys.stream, self.keys.ahead]
        trimmed, _ahead = commands.run(self.client, "trim", own, [now, cutoff, 1000, *groups])
        return int(trimmed)

    def retire(self, lane: str, lease: str) -> int:
        keys = [self.keys.stream, self.keys.lease(GROUP, lane)]
        return int(commands.run(self.client, "retire", keys, [lease, GROUP, lane]))


def hash_of(key: str) -> str:
    """The hash of a key as partition.py and key_hash.lua have it."""
    return sha1(key.encode(), usedforsecurity=False).hexdigest()[:16]


def ids_of(entries: Sequence[Any]) -> list[str]:
    return [entry[0].decode() for entry in entries]


@pytest.fixture
def bare(client: Client, prefix: str) -> Partition:
    """A partition that does not exist yet."""
    return Partition(client, Keys(prefix).partition("orders", 3))


@pytest.fixture
def partition(bare: Partition) -> Partition:
    """A partition with the group, whose lane is leased to LEASE."""
    bare.ensure(GROUP, "earliest")
    bare.lease("", LEASE)
    return bare


@pytest.fixture
def fill_memory(client: Client) -> Iterator[Callable[[], None]]:
    """Lets the server have reached maxmemory from now on."""
    yield lambda: client.call("CONFIG", "SET", "maxmemory", 1)
    client.call("CONFIG", "SET", "maxmemory", 0)


# ---------------------------------------------------------------------- ensure


def test_ensure_makes_an_empty_stream_and_its_groups(bare):
    assert bare.ensure() == 0
    assert bare.client.call("XLEN", bare.keys.stream) == 0
    assert bare.client.call("XINFO", "GROUPS", bare.keys.stream) == []
    assert bare.ensure(GROUP, "earliest", "ledger", "latest") == 2
    assert bare.client.call("XLEN", bare.keys.stream) == 0


def test_a_group_begins_an_era_that_outlives_the_group(partition):
    assert partition.era() == "era-1"
    partition.client.call("XGROUP", "DESTROY", partition.keys.stream, GROUP)
    assert partition.ensure(GROUP, "earliest") == 1
    assert partition.era() == "era-1"


def test_a_stream_that_is_made_again_begins_a_new_era(partition):
    partition.client.call("DEL", partition.keys.stream)
    partition.ensure(GROUP, "earliest")
    assert partition.era() == "era-2"


def test_a_stream_that_somebody_else_made_again_begins_a_new_era_where_it_is_younger_than_the_mark(partition):
    partition.client.call("SET", partition.keys.mark(GROUP), "5-0")
    partition.client.call("DEL", partition.keys.stream)
    partition.client.call("XADD", partition.keys.stream, "1-0", "v", "new")
    partition.ensure(GROUP, "earliest")
    assert partition.era() == "era-2"


def test_a_group_of_before_there_were_eras_goes_on_without(partition):
    partition.client.call("HDEL", partition.keys.state(GROUP), "era")
    partition.ensure(GROUP, "earliest")
    assert partition.era() is None


def test_ensure_again_changes_nothing(partition):
    ids = partition.add("a", "b")
    partition.fetch(1)
    assert partition.ensure(GROUP, "latest") == 0
    assert (partition.group()["last-delivered-id"], partition.group()["lag"]) == (b"1-0", 1)
    assert partition.pending() == ids[:1]


@pytest.mark.parametrize(
    ("start", "expected_lag"),
    [("earliest", 2500), ("latest", 0), ("501-0", 2499), ("1000-0", 2000), ("2999-0", 1), ("3000-0", 0),
     ("1000-7", 2000), ("100-0", 2500)],
)  # fmt: skip
def test_a_group_knows_its_exact_lag_from_the_beginning(bare, start, expected_lag):
    # Given 3,000 messages, of which the first 500 were trimmed
    bare.ensure()
    bare.client.pipe([("XADD", bare.keys.stream, f"{number}-0", "v", "x") for number in range(1, 3001)])
    bare.client.call("XTRIM", bare.keys.stream, "MAXLEN", 2500)
    # When a group is made
    assert bare.ensure(GROUP, start) == 1
    # Then the server knows how much is before it, and goes on knowing
    assert bare.group()["lag"] == expected_lag
    fetched = bare.fetch(10_000)
    assert len(fetched) == expected_lag
    assert bare.group()["lag"] == 0
    assert bare.group()["entries-read"] == 3000


# ---------------------------------------------------------------------- lease


def test_a_lease_is_taken_only_from_the_value_that_is_expected(bare):
    assert bare.lease("", "a:1") == [1, b"a:1"]
    assert bare.lease("", "b:1") == [0, b"a:1"]
    assert bare.lease("b:1", "b:2") == [0, b"a:1"]
    assert bare.lease("a:1", "b:1") == [1, b"b:1"]
    assert bare.client.call("GET", bare.keys.lease(GROUP, LANE)) == b"b:1"
    assert bare.client.call("TTL", bare.keys.lease(GROUP, LANE)) == -1


def test_a_lease_can_be_removed(bare):
    bare.lease("", "a:1")
    assert bare.lease("a:1", "") == [1, b""]
    assert bare.client.call("EXISTS", bare.keys.lease(GROUP, LANE)) == 0


def test_a_lease_taken_by_force_makes_what_is_pending_suspect(partition):
    partition.add("a", "b", "c")
    partition.fetch(2)
    assert partition.lease(LEASE, "worker-2:1", "1")[0] == 1
    assert partition.state() == {f"suspect:{LANE}": b"2-0"}


def test_a_refused_lease_makes_nothing_suspect(partition):
    partition.add("a")
    partition.fetch()
    assert partition.lease("somebody:1", "worker-2:1", "1")[0] == 0
    assert partition.state() == {}


def test_a_lease_can_be_taken_by_force_where_nothing_is_pending_or_nothing_exists(partition, prefix):
    assert partition.lease(LEASE, "worker-2:1", "1")[0] == 1
    assert partition.state() == {}
    missing = Partition(partition.client, Keys(prefix).partition("gone", 0))
    assert missing.lease("", "worker-2:1", "1")[0] == 1


# ---------------------------------------------------------------------- turn


def test_a_stale_lease_refuses_everything(partition):
    # Given messages in hand, and a lease that was taken over
    done, failed, rejected, held = partition.add("a", "b", "c", "d")
    partition.fetch()
    partition.add("e")
    partition.lease(LEASE, "worker-2:1")
    before = partition.everything()
    # When the old owner settles and fetches
    reply = partition.turn(
        fetch=10, done=[done], retry=[[failed, 0, "{}"]], dead=[[rejected, "r", "e", 1, 0]],
        held=[[held, pad_id(held), "hash"]], noted=[[failed, "{}"]], release=["hash"], clear=["x"],
    )  # fmt: skip
    # Then nothing happens, and it is told whose lane it is
    assert reply == [0, b"worker-2:1"]
    assert partition.everything() == before
    # And so it is with the other scripts
    assert partition.recover() == [0, b"worker-2:1"]
    assert partition.due() == [0, b"worker-2:1"]
    assert partition.retire(LANE, LEASE) == 0
    assert partition.everything() == before


def test_a_lease_that_is_gone_refuses_everything(partition):
    partition.lease(LEASE, "")
    assert partition.turn(fetch=1) == [0, b""]


def test_done_messages_are_acknowledged_and_new_ones_are_fetched(partition):
    ids = partition.add("a", "b", "c")
    partition.fetch(1)
    reply = partition.turn(done=ids[:1], fetch=1)
    assert (reply[0], ids_of(reply[1])) == (1, ids[1:2])
    assert reply[1][0][1] == [b"v", b"b", b"k", b"A1"]
    assert partition.pending() == ids[1:2]


def test_a_turn_that_finds_nothing_new_says_so(partition):
    assert partition.turn(fetch=10) == [1, [], [], 0, 0, -1]


def test_a_retry_stays_pending_with_its_state_and_its_due_time(partition):
    (failed,) = partition.add("a")
    partition.fetch()
    before = partition.now()
    *_, retrying, held, due = partition.turn(retry=[[failed, 5000, '{"k":"h","a":1}']])
    assert (retrying, held) == (1, 0)
    assert before <= due - 5000 <= partition.now()
    assert partition.pending() == [failed]
    assert partition.state() == {failed: b'{"k":"h","a":1}'}
    assert float(partition.client.call("ZSCORE", partition.keys.retry(GROUP), failed)) == due


def test_an_attempt_can_be_noted_before_the_handler_runs(partition):
    (suspect,) = partition.add("a")
    partition.fetch()
    partition.turn(noted=[[suspect, '{"a":1}']])
    assert (partition.pending(), partition.retrying()) == ([suspect], [])
    assert partition.state() == {suspect: b'{"a":1}'}


def test_a_held_message_stays_pending_behind_its_key(partition):
    first, second = partition.add("a", "b")
    partition.fetch()
    reply = partition.turn(retry=[[first, 1000, "{}"]], held=[[second, pad_id(second), "hash"]])
    assert reply[3:5] == [1, 1]
    assert partition.held() == [f"hash:{pad_id(second)}"]
    assert partition.pending() == [first, second]


def test_a_dead_letter_keeps_the_message_and_why(partition):
    (rejected,) = partition.add("body", key="K")
    partition.fetch()
    partition.turn(retry=[[rejected, 0, "{}"]])
    before = partition.now()
    partition.turn(dead=[[rejected, "no such product", "Trace: back", 3, 1700000000000]])
    (letter,) = partition.dead()
    assert before <= int(letter.pop("last")) <= partition.now()
    assert letter == {
        "id": rejected.encode(), "reason": b"no such product", "error": b"Trace: back", "attempts": b"3",
        "first": b"1700000000000", "v": b"body", "k": b"K",
    }  # fmt: skip
    assert (partition.pending(), partition.retrying(), partition.state()) == ([], [], {"dead": b"1"})


def test_a_dead_letter_whose_message_was_trimmed_is_kept_all_the_same(partition):
    (rejected,) = partition.add("a")
    partition.fetch()
    partition.client.call("XTRIM", partition.keys.stream, "MAXLEN", 0)
    partition.turn(dead=[[rejected, "r", "e", 1, 0]])
    assert [letter["id"] for letter in partition.dead()] == [rejected.encode()]
    assert partition.pending() == []


def test_dead_letters_beyond_the_limit_push_out_the_oldest_and_are_counted(partition):
    ids = partition.add("a", "b", "c", "d", "e")
    partition.fetch()
    partition.turn(dead=[[id, "r", "e", 1, 0] for id in ids], dead_limit=2)
    assert [letter["id"].decode() for letter in partition.dead()] == ids[3:]
    assert partition.state() == {"dead": b"5", "dead_dropped": b"3"}


def test_the_settled_head_of_a_key_releases_the_next_ones_in_order(partition):
    # Given a failing head, and ten messages of its key and one of another key behind it
    head, *waiting = partition.add(*"abcdefghijk")
    partition.fetch()
    other = partition.add("x")[0]
    partition.fetch()
    partition.turn(
        retry=[[head, 0, "{}"]],
        held=[*[[id, pad_id(id), "hash"] for id in reversed(waiting)], [other, pad_id(other), "hash2"]],
    )
    # When the head is done
    reply = partition.turn(done=[head], release=["hash"])
    # Then all of its key are due, in their order, and the other key still waits
    assert reply[2] == [[id.encode(), b"hash"] for id in waiting]
    assert partition.held() == [f"hash2:{pad_id(other)}"]
    assert ids_of(partition.due()[1]) == waiting
    assert orjson.loads(partition.state()[waiting[0]]) == {"k": "hash", "a": 0}


def test_of_very_many_held_messages_a_part_is_released_and_the_rest_stays_held(partition):
    head, *waiting = partition.add(*map(str, range(151)))
    partition.fetch(200)
    partition.turn(retry=[[head, 0, "{}"]], held=[[id, pad_id(id), "h"] for id in waiting])
    reply = partition.turn(done=[head], release=["h"])
    assert [id.decode() for id, _ in reply[2]] == waiting[:100]
    assert partition.held() == [f"h:{pad_id(id)}" for id in waiting[100:]]
    reply = partition.turn(done=waiting[:100], release=["h"])
    assert [id.decode() for id, _ in reply[2]] == waiting[100:]


def test_fields_that_are_no_message_can_be_cleared(partition):
    partition.add("a")
    partition.fetch()
    partition.lease(LEASE, LEASE, "1")
    assert partition.state()
    partition.turn(clear=[f"suspect:{LANE}"])
    assert partition.state() == {}


def test_sending_the_same_settle_twice_changes_nothing(partition):
    # Given a turn with every kind of outcome
    done, failed, held, noted, rejected, head, behind = partition.add(*"abcdefg")
    partition.fetch()
    partition.turn(retry=[[head, 0, "{}"]], held=[[behind, pad_id(behind), "other"]])
    outcomes = {
        "done": [done, head], "retry": [[failed, 60_000, '{"k":"h","a":1}']], "noted": [[noted, '{"a":1}']],
        "held": [[held, pad_id(held), "h"]], "dead": [[rejected, "r", "e", 1, 0]], "release": ["other"],
    }  # fmt: skip
    partition.turn(**outcomes)
    once = partition.everything()
    # When its reply is lost, and it is sent again
    partition.turn(**outcomes)
    # Then nothing has changed
    assert partition.everything() == once
    assert len(partition.dead()) == 1


def test_a_settle_touches_only_what_is_pending_in_its_lane(partition):
    mine, other = partition.add("a", "b")
    partition.fetch(1)
    partition.fetch(1, lane="other")
    partition.turn(
        retry=[[other, 0, "{}"]], dead=[[other, "r", "e", 1, 0]], held=[[other, pad_id(other), "h"]]
    )
    assert partition.pending("other") == [other]
    assert (partition.retrying(), partition.held(), partition.dead(), partition.state()) == ([], [], [], {})
    assert partition.pending(LANE) == [mine]


def test_everything_can_be_settled_when_memory_is_full(partition, fill_memory):
    # Given messages in hand and a server that refuses to write more
    done, failed, held, rejected, new = partition.add(*"abcde")
    partition.fetch(4)
    fill_memory()
    with pytest.raises(BusFull):
        partition.add("f")
    # When they are settled, then all is recorded, and the group drains
    hash_ = hash_of("A1")
    reply = partition.turn(
        fetch=5, done=[done], retry=[[failed, 0, "{}"]], held=[[held, pad_id(held), hash_]],
        dead=[[rejected, "r", "e", 1, 0]],
    )  # fmt: skip
    assert ids_of(reply[1]) == [new]
    assert partition.pending() == [failed, held, new]
    assert len(partition.dead()) == 1
    assert ids_of(partition.due()[1]) == [failed]
    assert ids_of(partition.recover()[1]) == [new]
    assert partition.lease(LEASE, "worker-2:1", "1")[0] == 1


def test_a_group_that_is_gone_is_an_error_that_is_known_as_such(partition):
    partition.client.call("XGROUP", "DESTROY", partition.keys.stream, GROUP)
    for script in (lambda: partition.turn(fetch=1), partition.recover):
        with pytest.raises(ServerError) as caught:
            script()
        assert commands.is_nogroup(caught.value)


def test_scripts_are_loaded_again_when_the_server_has_forgotten_them(partition):
    partition.client.call("SCRIPT", "FLUSH")
    assert partition.turn(fetch=1)[0] == 1
    assert partition.turn(fetch=1)[0] == 1


# ---------------------------------------------------------------------- recover


def test_left_overs_are_all_that_is_pending_but_what_waits(partition):
    plain, retrying, held, last = partition.add(*"abcd")
    partition.fetch()
    partition.turn(retry=[[retrying, 0, "{}"]], held=[[held, pad_id(held), hash_of("A1")]])
    reply = partition.recover()
    assert (reply[0], ids_of(reply[1]), reply[2:]) == (1, [plain, last], [b""])


@pytest.mark.parametrize(("ordering", "hash_"), [("partition", "*"), ("key", "")])
def test_what_is_held_back_as_a_whole_partition_or_without_a_key_is_no_left_over(partition, ordering, hash_):
    partition.client.call("XADD", partition.keys.stream, "1-0", "v", "without a key")
    partition.fetch()
    partition.turn(held=[["1-0", pad_id("1-0"), hash_]])
    assert partition.recover(ordering=ordering)[1] == []
    assert ids_of(partition.recover(ordering="none")[1]) == ["1-0"]


def test_scripts_know_what_is_held_back_by_the_key_hash_of_python_even_if_a_stranger_gave_two_keys(partition):
    fields = ["v", "1", "k", "first", "k", "last"]
    partition.client.call("XADD", partition.keys.stream, "1-0", *fields)
    message = Message("orders", 3, "1-0", [field.encode() for field in fields], codec.decode)
    partition.fetch()
    partition.turn(held=[["1-0", pad_id("1-0"), key_hash("key", codec.raw_key(message))]])
    assert partition.recover()[1] == []


def test_left_overs_come_in_pages(partition):
    ids = partition.add(*"abcde")
    partition.fetch()
    first = partition.recover(count=2)
    second = partition.recover(first[2].decode(), count=2)
    third = partition.recover(second[2].decode(), count=2)
    assert [ids_of(reply[1]) for reply in (first, second, third)] == [ids[:2], ids[2:4], ids[4:]]
    assert (first[2], third[2]) == (b"(2-0", b"")


def test_left_overs_of_other_lanes_are_theirs_without_an_ordering(partition):
    partition.add("a", "b")
    partition.fetch(1)
    partition.fetch(1, lane="other")
    assert ids_of(partition.recover(ordering="none")[1]) == ["1-0"]
    assert partition.lanes() == {LANE: 1, "other": 1}


def test_what_is_pending_under_another_name_comes_to_the_one_lane_of_an_ordered_group(partition):
    partition.add("a", "b")
    partition.fetch(1)
    partition.fetch(1, lane="other")
    assert ids_of(partition.recover(count=1)[1]) == ["1-0"]
    assert ids_of(partition.recover("(1-0")[1]) == ["2-0"]
    # And a name with nothing pending is of an earlier ordering: it goes
    assert partition.lanes() == {LANE: 2}


# ---------------------------------------------------------------------- reorder


def test_an_ordering_changes_only_where_nothing_is_pending_waits_for_a_retry_or_is_held(partition):
    first, second = partition.add("a", "b")
    partition.fetch(2, lane="other")
    partition.client.call("SET", partition.keys.lease(GROUP, "other"), "you:1")
    assert partition.reorder("key", "none", LANE, "other") == [b"none", 2]
    partition.client.call("XACK", partition.keys.stream, GROUP, first, second)
    partition.client.call("ZADD", partition.keys.held(GROUP), 0, "x")
    assert partition.reorder("key", "none", LANE, "other") == [b"none", 1]
    partition.client.call("DEL", partition.keys.held(GROUP))
    partition.client.call("ZADD", partition.keys.retry(GROUP), 0, "x")
    assert partition.reorder("key", "none", LANE, "other") == [b"none", 1]
    assert partition.client.call("GET", partition.keys.lease(GROUP, "other")) == b"you:1"
    partition.client.call("DEL", partition.keys.retry(GROUP))
    # A lane that the asker did not know of: he asks again
    assert partition.reorder("key", "none", LANE) == [b"none", -1]
    assert partition.reorder("key", "none", LANE, "other") == [b"key", 0]
    # Then every lane is free, and names of the old ordering are gone
    assert partition.state()["ordering"] == b"key"
    assert partition.client.call("GET", partition.keys.lease(GROUP, "other")) is None
    assert partition.client.call("GET", partition.keys.lease(GROUP, LANE)) == b"free:1"
    assert partition.lanes() == {}


def test_a_lease_is_taken_by_the_ordering_in_effect_or_not_at_all(partition):
    assert partition.lease(LEASE, "me:2", ordering="key") == [1, b"me:2", b"0-0"]
    assert partition.state()["ordering"] == b"key"
    assert partition.lanes() == {LANE: 0}
    assert partition.lease("me:2", "me:3", ordering="none") == [0, b"me:2"]
    assert partition.lease("me:2", "free:me-2") == [1, b"free:me-2"]


def taken(partition: Any, number: int) -> bytes:
    """The position with which a lane is taken; b"" where it must be looked at."""
    lease = f"me:{number}"
    before = partition.client.call("GET", partition.keys.lease(GROUP, LANE)) or b""
    reply = partition.lease(before.decode(), lease, ordering="key")
    assert reply[:2] == [1, lease.encode()]
    position: bytes = reply[2]
    return position


def test_a_lane_is_surely_at_rest_only_where_nothing_is_pending_waiting_or_ahead(partition):
    assert taken(partition, 2) == b"0-0"
    # Given a message that nobody was given yet
    (first,) = partition.add("a")
    assert taken(partition, 3) == b""
    # that is pending
    partition.client.call("XREADGROUP", "GROUP", GROUP, LANE, "STREAMS", partition.keys.stream, ">")
    assert taken(partition, 4) == b""
    # that is settled
    partition.client.call("XACK", partition.keys.stream, GROUP, first)
    assert taken(partition, 5) == first.encode()
    # while something waits that is not pending
    for key in (partition.keys.retry(GROUP), partition.keys.held(GROUP)):
        partition.client.call("ZADD", key, 0, "x")
        assert taken(partition, 6) == b""
        partition.client.call("SET", key, "of another type")
        assert taken(partition, 7) == b""
        partition.client.call("DEL", key)
    # and where a message was removed before anybody was given it
    partition.add("b")
    partition.client.call("XTRIM", partition.keys.stream, "MAXLEN", 0)
    assert taken(partition, 8) == b""


def test_left_overs_that_were_trimmed_are_acknowledged_and_counted(partition):
    trimmed, kept = partition.add("a", "b")
    partition.fetch()
    partition.turn(noted=[[trimmed, "{}"]])
    partition.client.call("XTRIM", partition.keys.stream, "MAXLEN", 1)
    reply = partition.recover()
    assert ids_of(reply[1]) == [kept]
    assert partition.pending() == [kept]
    assert partition.state() == {"trimmed": b"1"}


# ---------------------------------------------------------------------- due


def test_only_what_is_due_by_the_clock_of_the_server_comes(partition):
    now, later = partition.add("a", "b")
    partition.fetch()
    before = partition.now()
    partition.turn(retry=[[now, 0, '{"a":1}'], [later, 60_000, '{"a":2}']])
    after = partition.now()
    found = partition.due()
    assert (found[0], ids_of(found[1]), found[2], found[3]) == (1, [now], [b'{"a":1}'], [])
    assert before <= found[4] <= after  # the one in hand is still the first of the zset
    assert partition.retrying() == [now, later]
    partition.turn(done=[now])
    assert partition.due()[1] == []
    assert before <= partition.due()[4] - 60_000 <= after


def test_a_retry_becomes_due_when_its_time_has_come(partition):
    (failed,) = partition.add("a")
    partition.fetch()
    partition.turn(retry=[[failed, 300, "{}"]])
    assert partition.due()[1] == []
    assert ids_of(wait_until(lambda: partition.due()[1], what="the retry to be due")) == [failed]


def test_what_is_due_can_be_claimed_by_one_lane_alone(partition):
    (failed,) = partition.add("a")
    partition.fetch(lane="other")
    partition.client.call("ZADD", partition.keys.retry(GROUP), 0, failed)
    assert ids_of(partition.due(claim="1")[1]) == [failed]
    assert partition.due(claim="1")[1] == []
    assert partition.pending(LANE) == [failed]
    assert partition.pending("other") == []


def test_a_retry_whose_message_was_trimmed_is_reported_until_a_turn_forgets_it(partition):
    # Given a failing head that is trimmed away, and a message of its key behind it
    trimmed, kept = partition.add("a", "b")
    partition.fetch()
    partition.turn(retry=[[trimmed, 0, '{"k":"h"}']], held=[[kept, pad_id(kept), "h"]])
    partition.client.call("XTRIM", partition.keys.stream, "MAXLEN", 1)
    # When it is due, however often that is asked
    for _ in range(2):
        found = partition.due()
        assert (found[1], found[3]) == ([], [[trimmed.encode(), b'{"k":"h"}']])
    # Then the turn that forgets it lets the next one go, and counts it once
    for _ in range(2):
        partition.turn(trimmed=[trimmed], release=["h"])
    assert (partition.pending(), partition.retrying(), partition.held()) == ([kept], [kept], [])
    assert partition.state()["trimmed"] == b"1"


def test_a_retry_that_a_new_group_does_not_know_is_pending_again(partition):
    # Given a group that was lost and made again at its mark
    (failed,) = partition.add("a")
    partition.fetch()
    partition.turn(retry=[[failed, 0, "{}"]])
    partition.client.call("XGROUP", "DESTROY", partition.keys.stream, GROUP)
    partition.ensure(GROUP, failed)
    # When its retry is due
    assert ids_of(partition.due()[1]) == [failed]
    # Then it can be settled
    assert partition.pending(LANE) == [failed]
    partition.turn(done=[failed])
    assert (partition.pending(), partition.retrying()) == ([], [])


# ---------------------------------------------------------------------- retire


def test_a_lane_with_nothing_pending_is_removed_with_its_lease(partition):
    (id,) = partition.add("a")
    partition.fetch(lane="worker-1.0")
    partition.client.call("SET", partition.keys.lease(GROUP, "worker-1.0"), LEASE)
    assert partition.retire("worker-1.0", LEASE) == 0
    assert partition.pending("worker-1.0") == [id]
    partition.client.call("XACK", partition.keys.stream, GROUP, id)
    assert partition.retire("worker-1.0", "somebody:1") == 0
    assert partition.retire("worker-1.0", LEASE) == 1
    names = [
        commands.fields_of(row)["name"]
        for row in partition.client.call("XINFO", "CONSUMERS", partition.keys.stream, GROUP)
    ]
    assert b"worker-1.0" not in names
    assert partition.client.call("EXISTS", partition.keys.lease(GROUP, "worker-1.0")) == 0


# ---------------------------------------------------------------------- trim


def first_id(partition: Partition) -> str:
    return ids_of(partition.client.call("XRANGE", partition.keys.stream, "-", "+", "COUNT", 1))[0]


def test_old_messages_that_every_group_has_settled_are_trimmed(partition):
    ids = partition.add(*"abcdefghij")
    partition.fetch()
    partition.turn(done=ids)
    assert partition.trim(6, GROUP) == 5
    assert first_id(partition) == "6-0"
    assert partition.trim(6, GROUP) == 0


def test_what_a_group_has_not_been_given_is_never_trimmed(partition):
    partition.add(*"abcdefghij")
    fetched = partition.fetch(4)
    partition.turn(done=fetched)
    partition.trim(100, GROUP)
    assert partition.fetch(100) == [f"{number}-0" for number in range(5, 11)]


def test_what_a_group_has_not_settled_is_never_trimmed(partition):
    ids = partition.add(*"abcdefghij")
    partition.fetch()
    partition.turn(done=[*ids[:3], *ids[4:]], retry=[[ids[3], 0, "{}"]])
    assert partition.trim(100, GROUP) == 3
    assert ids_of(partition.due()[1]) == [ids[3]]


def test_the_slowest_group_decides_even_if_it_is_not_declared(partition):
    ids = partition.add(*"abcdefghij")
    partition.ensure("by-hand", "3-0")
    partition.fetch()
    partition.turn(done=ids)
    partition.trim(100, GROUP)
    assert first_id(partition) == "3-0"


def test_nothing_is_trimmed_while_a_declared_group_is_missing(partition):
    ids = partition.add("a", "b")
    partition.fetch()
    partition.turn(done=ids)
    assert partition.trim(100, GROUP, "ledger") == -1
    assert first_id(partition) == "1-0"


def test_a_stream_that_is_gone_has_nothing_to_trim(bare):
    assert bare.trim(100, GROUP) == 0


def test_ids_beyond_the_precision_of_lua_numbers_are_compared_exactly(bare):
    # Given ids that are equal as doubles
    big = 2**63
    bare.ensure(GROUP, "earliest")
    bare.lease("", LEASE)
    for number in range(4):
        bare.client.call("XADD", bare.keys.stream, f"{big + number}-{2**64 - 2 + number % 2}", "v", "x")
    ids = bare.fetch()
    bare.turn(done=ids[:2])
    # When everything may go by its age
    assert bare.trim(2**64 - 1, GROUP) == 2
    # Then what is unsettled stays
    assert bare.pending() == ids[2:]
    assert first_id(bare) == ids[2]


# ---------------------------------------------------------------------- beat


def test_a_beat_writes_ones_own_record_and_returns_the_table(client, prefix, fill_memory):
    # Given a full memory: then, too, or everybody would look dead
    fill_memory()
    workers = Keys(prefix).workers
    assert commands.run(client, "beat", [workers], ["a", '{"beat":1}']) == [b"a", b'{"beat":1}']
    commands.run(client, "beat", [workers], ["b", '{"beat":1}'])
    table = commands.fields_of(commands.run(client, "beat", [workers], ["a", '{"beat":2}']))
    assert table == {"a": b'{"beat":2}', "b": b'{"beat":1}'}
