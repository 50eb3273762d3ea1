"""What is published is what a handler gets; what cannot be published is refused with the place named."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bus.errors import InvalidMessage, Undecodable
from bus.format import codec
from bus.values import Message

LIMIT = 1024 * 1024

texts = st.text(st.characters(codec="utf-8"))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20
)


def encode(value: Any, key: Any = None, headers: Any = None, max_bytes: int = LIMIT) -> list[bytes]:
    return codec.encode("orders", value, key, headers, max_bytes=max_bytes)


@given(json_values, st.none() | texts, st.none() | st.dictionaries(texts, texts))
def test_value_key_and_headers_come_back_as_they_were(value, key, headers):
    assert codec.decode(encode(value, key, headers)) == (value, key, headers or {})


@given(st.binary(), st.none() | texts)
def test_bytes_come_back_as_the_same_bytes(value, key):
    assert codec.decode(encode(value, key)) == (value, key, {})


@pytest.mark.parametrize(
    "wrapped", [bytearray(b"\x00\xff"), memoryview(b"\x00\xff")], ids=["bytearray", "memoryview"]
)
def test_what_is_like_bytes_is_kept_as_bytes(wrapped):
    assert codec.decode(encode(wrapped))[0] == b"\x00\xff"


def test_an_entry_is_readable_with_any_redis_tool():
    assert encode({"sku": "A1"}, "A1", {"tenant": "de"}) == [
        b"v", b'{"sku":"A1"}', b"k", b"A1", b"h", b'{"tenant":"de"}',
    ]  # fmt: skip


def test_the_headers_of_one_message_are_not_those_of_another():
    first, second = codec.decode([b"v", b"1"])[2], codec.decode([b"v", b"2"])[2]
    assert first == second == {}
    assert first is not second


def message(fields: list[bytes]) -> Message:
    return Message("orders", 0, "1-1", fields, codec.decode)


def read(message: Message) -> Any:
    try:
        return message.value, message.key, message.headers
    except Undecodable as error:
        return str(error)


#: Fields that nearly are what decode_ahead takes.
near_fields = st.lists(
    st.tuples(st.sampled_from([b"v", b"k", b"e", b"h", b"g", b"x"]),
              st.sampled_from([b"1", b"raw", b'"a"', b"\xff", b'{"a":"b"}', b"{"])),
    min_size=1, max_size=3,
).map(lambda pairs: [part for pair in pairs for part in pair])  # fmt: skip


@given(st.lists(near_fields | st.builds(encode, json_values, st.none() | texts), max_size=5))
@example([[b"v", b"1", b"e", b"raw"]])
@example([[b"v", b"1", b"h", b"{}"]])
@example([[b"v", b"1", b"g", b"group"]])
@example([[b"k", b"x", b"v", b"1"]])
@example([[b"v", b"1", b"v", b"2"]])
@example([[b"x", b"1", b"k", b"2"]])
@example([[b"x", b"1"]])
@example([[b"v", b"1", b"k", b"\xff"]])
def test_what_is_decoded_ahead_is_what_is_decoded_when_it_is_read(batch):
    messages = [message(fields) for fields in batch]
    codec.decode_ahead(messages)
    assert [read(each) for each in messages] == [read(message(fields)) for fields in batch]


@given(near_fields | st.builds(encode, json_values, st.none() | texts))
def test_the_raw_key_is_that_of_the_entry(fields):
    assert codec.raw_key(message(fields)) == message(fields).raw.get(b"k")


@pytest.mark.parametrize("key", [None, "A1"])
def test_plain_messages_are_decoded_ahead(key):
    def refuse(fields):
        raise AssertionError("decoded late")

    messages = [Message("orders", 0, "1-1", encode(n, key), refuse) for n in range(3)]
    codec.decode_ahead(messages)
    assert [read(each) for each in messages] == [(n, key, {}) for n in range(3)]
    assert messages[0].headers is not messages[1].headers


def test_no_more_is_decoded_ahead_than_is_little_work():
    decoded = []

    def late(fields):
        decoded.append(fields[1][:1])
        return codec.decode(fields)

    values = [
        b'"%s"' % (b"x" * (codec.AHEAD_BYTES // 2)),
        b"[1]",
        b'"%s"' % (b"y" * (codec.AHEAD_BYTES // 2)),
    ]
    messages = [Message("orders", 0, "1-1", [b"v", value], late) for value in values]
    codec.decode_ahead(messages)
    assert [len(str(each.value)) for each in messages] == [len(values[0]) - 2, 3, len(values[2]) - 2]
    assert decoded == [b'"']


def test_a_message_for_which_there_is_no_memory_costs_its_neighbours_nothing(monkeypatch):
    loads = orjson.loads

    def scarce(value):
        if value == b"[]":
            raise MemoryError
        return loads(value)

    monkeypatch.setattr(orjson, "loads", scarce)
    messages = [message([b"v", value]) for value in (b"1", b"[]", b"2")]
    codec.decode_ahead(messages)
    assert [messages[0].value, messages[2].value] == [1, 2]
    with pytest.raises(MemoryError):
        _ = messages[1].value


# ---------------------------------------------------------------------- refused values


class Colour(enum.Enum):
    BROKEN = math.inf


@dataclasses.dataclass
class Line:
    price: float


def cycle() -> Any:
    value: dict[str, Any] = {"lines": [{"sku": "A1"}]}
    value["lines"][0]["order"] = value
    return value


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (math.nan, "value is nan"),
        ({"a": [1, math.inf]}, r"value\['a'\]\[1\] is inf"),
        ({"a": (None, -math.inf)}, r"value\['a'\]\[1\] is -inf"),
        ([Line(math.nan)], r"value\[0\]\['price'\] is nan"),
        ({"c": Colour.BROKEN}, r"value\['c'\] is inf"),
        ({"n": [2**64]}, r"value\['n'\]\[0\] is int: Integer exceeds 64-bit range"),
        ({"n": -(2**63) - 1}, r"value\['n'\] is int"),
        ({"t": "\ud800"}, r"value\['t'\] is str: .* surrogates"),
        ({"\ud800": 1}, r"value has the key '\\ud800', which is not valid Unicode"),
        ({"a": {1: 2}}, r"value\['a'\] has the key 1, which is not a str but int"),
        ({"s": {1, 2}}, r"value\['s'\] is set"),
        (object(), "value is object"),
        (cycle(), r"value\['lines'\]\[0\]\['order'\] is a cycle"),
        (deep(300), r"value\[0\]\[0\].* is nested too deeply"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_what_json_cannot_hold_is_refused_and_the_place_is_named(value, where):
    with pytest.raises(InvalidMessage, match=f"Message for 'orders' cannot be written as JSON: {where}"):
        encode(value)


@given(json_values, st.sampled_from([math.nan, math.inf, 2**64, "\udcff", {1}, {2: 3}]), st.integers(0, 5))
def test_one_bad_part_is_found_wherever_it_is(value, bad, depth):
    for level in range(depth):
        bad = [value, bad] if level % 2 else {"fine": value, "bad": bad}
    with pytest.raises(InvalidMessage, match="value"):
        encode(bad)


def test_null_itself_is_a_value():
    assert codec.decode(encode({"a": None, "b": "null"}))[0] == {"a": None, "b": "null"}


def test_a_value_that_only_looks_cyclic_is_fine():
    shared = {"a": 1}
    assert codec.decode(encode([shared, shared]))[0] == [shared, shared]


@pytest.mark.parametrize("key", [1, b"A1", 1.5, ("A", 1), True], ids=repr)
def test_a_key_that_is_no_str_is_refused_with_the_way_to_mend_it(key):
    with pytest.raises(InvalidMessage, match=r"the key must be a str, not .* Write str\(\.\.\.\) around it"):
        encode(1, key)


def test_a_key_that_is_no_unicode_is_refused():
    with pytest.raises(InvalidMessage, match="the key is not valid Unicode"):
        encode(1, "\ud800")


@pytest.mark.parametrize(
    ("headers", "where"),
    [
        ({"tenant": 7}, "header 'tenant' must be a str, not int"),
        ({7: "de"}, "name of a header must be a str, not int"),
        ({"tenant": "\ud800"}, "header 'tenant' is not valid Unicode"),
        ([("tenant", "de")], "headers must be a dict of str to str, not list"),
    ],
    ids=repr,
)
def test_headers_are_str_to_str_and_the_error_names_the_one_at_fault(headers, where):
    with pytest.raises(InvalidMessage, match=where):
        encode(1, None, headers)


def test_headers_may_be_of_a_subclass_of_str():
    class Safe(str):
        __slots__ = ()

    assert codec.decode(encode(1, None, {Safe("tenant"): Safe("de")}))[2] == {"tenant": "de"}


def test_a_message_may_be_as_long_as_the_limit_and_no_longer():
    assert encode(b"x" * 100, None, None, 100)
    assert encode(b"x" * 98, "ab", None, 100)
    with pytest.raises(
        InvalidMessage, match=r"has 101 bytes; at most 100 are allowed \(BUS\['MAX_MESSAGE_BYTES'\]\)"
    ):
        encode(b"x" * 99, "ab", None, 100)


# ---------------------------------------------------------------------- foreign entries


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([b"v", b"{"], "The value is not JSON"),
        ([b"v", b""], "The value is not JSON"),
        ([b"v", b"\xff\xfe"], "The value is not JSON"),
        ([b"v", b"NaN"], "The value is not JSON"),
        ([b"sku", b"A1", b"qty", b"2"], r"no field 'v' \(fields: b'qty', b'sku'\)"),
        ([], r"no field 'v' \(fields: none\)"),
        ([b"\xff", b"1"], "no field 'v'"),
        ([b"v", b"1", b"k", b"\xff"], "The key is not UTF-8"),
        ([b"v", b"1", b"h", b"{"], "The headers are not JSON"),
        ([b"v", b"1", b"h", b"[]"], "The headers are not a JSON object"),
        ([b"v", b"1", b"h", b"null"], "The headers are not a JSON object"),
        ([b"v", b"1", b"h", b'{"a":1}'], "The headers are not a JSON object of strings"),
    ],
    ids=repr,
)
def test_an_entry_that_is_no_message_says_why(fields, why):
    with pytest.raises(Undecodable, match=why):
        codec.decode(fields)


@given(st.lists(st.binary(), max_size=8).filter(lambda parts: len(parts) % 2 == 0))
def test_whatever_is_in_a_stream_gives_a_message_or_undecodable(fields):
    try:
        value, key, headers = codec.decode(fields)
    except Undecodable:
        return
    assert key is None or isinstance(key, str)
    assert isinstance(headers, dict)
    assert value is None or value is not None


def test_unknown_fields_of_another_writer_do_no_harm():
    assert codec.decode([b"v", b"1", b"trace", b"abc"]) == (1, None, {})
