"""Scripts that rewrite what is known of a failing message leave what a newer version has added as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bus.consuming.outcomes import Outcomes
from bus.format.keys import Keys, PartitionKeys, pad_id
from bus.format.state import Failure
from bus.streams import commands
from bus.streams.connect import Client

pytestmark = pytest.mark.both_servers

GROUP, LANE, LEASE = "inventory", "0", "worker-1:1"
HASH = "0123456789abcdef"
ID = "5-1"

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ['"', "\\", '\\"k":', "{[,"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | text
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text | st.just("k"), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
#: What a failure holds at least, and what a newer version may add to it. `k` is missing, or another one.
hashes = st.sampled_from(["", "*", 'z"\\', HASH, "é"])
names = text.filter(lambda name: name not in set("kaetng"))
records = st.builds(
    lambda ours, more, first: {**more, **ours} if first else {**ours, **more},
    st.fixed_dictionaries({"a": st.integers(0, 9)}, optional={"k": hashes}),
    st.dictionaries(names, json_values, max_size=4),
    st.booleans(),
)
dumps = st.builds(
    lambda record, indent, ascii: json.dumps(record, indent=indent, ensure_ascii=ascii),
    records, st.sampled_from([None, 1]), st.booleans(),
)  # fmt: skip


def pairs(raw: str | bytes) -> Any:
    """All that a JSON text says: objects as lists of pairs, in order, and numbers as they are written."""
    return json.loads(raw, object_pairs_hook=lambda found: ["object", *found], parse_int=str, parse_float=str)


def with_field(raw: str, name: str, value: Any) -> Any:
    """The same, with one field that has another value: where it stands (last, if twice), else before all."""
    _, *fields = pairs(raw)
    places = [at for at, (key, _) in enumerate(fields) if key == name]
    if places:
        fields[places[-1]] = (name, value)
        return ["object", *fields]
    return ["object", (name, value), *fields]


# ---------------------------------------------------------------------- the scripts


def released(client: Client, keys: PartitionKeys) -> None:
    """By turn.lua: the message is let go behind the head of its key."""
    client.call("ZADD", keys.held(GROUP), 0, f"{HASH}:{pad_id(ID)}")
    own = [keys.stream, keys.lease(GROUP, LANE), keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP),
           keys.dead(GROUP), keys.mark(GROUP)]  # fmt: skip
    outcomes = Outcomes(release=[HASH])
    reply = commands.run(client, "turn", own, [LEASE, GROUP, LANE, 0, 1000, outcomes.dump(), ""])
    assert reply[2] == [[ID.encode(), HASH.encode()]]


def mended(client: Client, keys: PartitionKeys) -> None:
    """By mend.lua: the message waits for its retry under a key that is not its own."""
    client.call("ZADD", keys.retry(GROUP), 1, ID)
    own = [keys.stream, keys.lease(GROUP, LANE), keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP)]
    reply = commands.run(client, "mend", own, [LEASE, GROUP, LANE, "key", "retry", "", 100])
    assert reply[0] == 1


def given_back(client: Client, keys: PartitionKeys) -> None:
    """By giveback.lua: the message waits for its retry and is gone from the stream."""
    client.call("ZADD", keys.retry(GROUP), 1, ID)
    client.call("XDEL", keys.stream, ID)
    client.call("HSET", keys.state(GROUP), "giving", "retry:")
    own = [keys.stream, keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP)]
    assert commands.run(client, "giveback", own, [GROUP, 100, "0"]) == b"0"


def rewritten(
    client: Client, keys: PartitionKeys, raw: str, act: Callable[[Client, PartitionKeys], None]
) -> bytes:
    """The record of a failing message after one of them, over a partition with this message alone."""
    client.pipe([("DEL", key) for key in keys.types(GROUP, LANE)])
    client.call("XADD", keys.stream, ID, "v", "1")
    client.call("XGROUP", "CREATE", keys.stream, GROUP, "0")
    client.call("XREADGROUP", "GROUP", GROUP, LANE, "STREAMS", keys.stream, ">")
    client.call("SET", keys.lease(GROUP, LANE), LEASE)
    client.call("HSET", keys.state(GROUP), ID, raw)
    act(client, keys)
    after = client.call("HGET", keys.state(GROUP), ID)
    assert isinstance(after, bytes)
    return after


NEWER = (
    '{"a":2,"list":[],"object":{},"big":12345678901234567890,"exact":0.10,'
    r'"nested":{"k":[{"k":[]}],"g":1},"text":"\"k\":\u006b \\"}'
)


@pytest.mark.parametrize(
    ("act", "name", "value"),
    [(released, "k", HASH), (mended, "k", ""), (given_back, "g", "1")],
    ids=["released", "mended", "given back"],
)
@settings(
    max_examples=100, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(raw=dumps)
@example(raw=NEWER)
@example(raw=NEWER.replace('{"a"', ' { "\\u006b" : "old" , "a"', 1))
@example(raw=NEWER[:-1] + ', "k": "old"}')
@example(raw='{"k":"old","a":1,"e":"\\"k\\":","k":"twice"}')
@example(raw='{"k":"old","a":1,"\\u006b":"twice"}')
@example(raw="{}")
@example(raw="{ }")
def test_one_field_of_a_failure_is_written_and_all_others_stay_as_they_are(
    client: Client, prefix: str, act: Callable[[Client, PartitionKeys], None], name: str, value: str, raw: str
) -> None:
    after = rewritten(client, Keys(prefix).partition("orders", 0), raw, act)
    if act is mended and dict(pairs(raw)[1:]).get("k") in ("", HASH):
        assert after.decode() == raw  # it is sound
    else:
        assert pairs(after) == with_field(raw, name, value)


@pytest.mark.parametrize("raw", ["", "[]", "[1,2]", "5", '"x"', "{", '{"a":1', "null", "\udc80"])
@pytest.mark.parametrize("act", [released, mended, given_back])
def test_what_is_no_record_is_replaced_by_that_of_a_message_that_never_failed(
    client: Client, prefix: str, act: Callable[[Client, PartitionKeys], None], raw: str
) -> None:
    foreign: Any = raw.encode("utf-8", "surrogateescape")
    after = rewritten(client, Keys(prefix).partition("orders", 0), foreign, act)
    record = orjson.loads(after)
    assert record.pop("g", 1) == 1
    assert record == {"k": HASH if act is released else "", "a": 0}
    assert isinstance(Failure.read("key", ID, after), Failure)


def test_what_was_gone_when_its_group_was_made_again_is_counted_however_its_record_is_written(
    client: Client, prefix: str
) -> None:
    keys = Keys(prefix).partition("orders", 0)
    own = [keys.stream, keys.lease(GROUP, LANE), keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP),
           keys.dead(GROUP), keys.mark(GROUP)]  # fmt: skip

    def trimmed(raw: str) -> object:
        def settle(client: Client, keys: PartitionKeys) -> None:
            client.call("XACK", keys.stream, GROUP, ID)
            outcomes = Outcomes(trimmed=[ID])
            commands.run(client, "turn", own, [LEASE, GROUP, LANE, 0, 1000, outcomes.dump(), ""])
            client.call("HSETNX", keys.state(GROUP), ID, "settled")

        rewritten(client, keys, raw, settle)
        return client.call("HGET", keys.state(GROUP), "trimmed")

    assert trimmed('{"k": "", "a": 1, "g": 1}') == b"1"
    assert trimmed('{"k":"","a":1,"newer":{"g":1}}') is None
