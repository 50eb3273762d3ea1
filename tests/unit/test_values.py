"""Names, durations, positions, retry policies and messages."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import ConfigurationError, Undecodable
from bus.format import codec
from bus.values import (
    MAX_PARTITIONS,
    Message,
    Position,
    RetryPolicy,
    Source,
    TopicSpec,
    check_name,
    check_new_name,
    id_pair,
)

# ---------------------------------------------------------------------- names and topics


@pytest.mark.parametrize("name", ["a", "orders", "Orders.v2_eu-west", "0", "x" * 100])
def test_letters_digits_and_three_signs_make_a_name(name):
    assert check_name("Topic", name) == name


@pytest.mark.parametrize(
    "name", ["", "a b", "a:b", "{a}", "a/b", "a*", "köln", "a\n", "x" * 101, None, 7, b"orders"], ids=repr
)
def test_anything_else_is_no_name_and_the_error_says_what_is_allowed(name):
    with pytest.raises(ConfigurationError, match=r"Topic .* is not a valid name: use 1 to 100 letters"):
        check_name("Topic", name)


@pytest.mark.parametrize("name", [".", ".."])
def test_what_stands_for_a_folder_in_addresses_names_nothing_new_and_what_has_it_is_known(name):
    assert check_name("Topic", name) == name
    assert TopicSpec(name=name).name == name
    with pytest.raises(ConfigurationError, match=r"Group '\.+' cannot be created: .* Use another name"):
        check_new_name("Group", name)
    assert check_new_name("Group", "...") == "..."


@pytest.mark.parametrize("partitions", [0, -1, MAX_PARTITIONS + 1, 1.0, True, "8", None])
def test_a_partition_count_outside_the_range_is_an_error_that_names_the_range(partitions):
    with pytest.raises(
        ConfigurationError, match=r"'orders': partitions must be a whole number from 1 to 1024"
    ):
        TopicSpec(name="orders", partitions=partitions)


def test_a_topic_may_have_the_most_partitions():
    assert TopicSpec(name="orders", partitions=MAX_PARTITIONS).partitions == 1024


# ---------------------------------------------------------------------- retry policies


def test_delays_grow_by_the_factor_up_to_the_longest():
    policy = RetryPolicy(delay=1, factor=2, max_delay=5, jitter=0)
    assert [policy.delay_after(attempt) for attempt in range(1, 6)] == [1, 2, 4, 5, 5]


def test_jitter_draws_from_both_sides_of_the_delay():
    policy = RetryPolicy(delay=10, jitter=0.1)
    assert policy.delay_after(1, lambda: 0.0) == pytest.approx(9)
    assert policy.delay_after(1, lambda: 1.0) == pytest.approx(11)


@given(
    st.builds(
        RetryPolicy,
        attempts=st.integers(1, 10**9),
        delay=st.floats(0, 1e300),
        factor=st.floats(1, 1e300),
        max_delay=st.floats(0, 1e9),
        jitter=st.floats(0, 1),
    ),
    st.integers(1, 10**9),
    st.floats(0, 1),
)
def test_every_delay_is_a_number_within_the_limits(policy, attempt, drawn):
    delay = policy.delay_after(attempt, lambda: drawn)
    assert 0 <= delay <= policy.max_delay * (1 + policy.jitter) * 1.0000001


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": True},
        {"attempts": 2.0},
        {"delay": -1},
        {"delay": math.nan},
        {"delay": "1"},
        {"max_delay": -1},
        {"max_delay": math.inf},
        {"factor": 0.5},
        {"jitter": 1.1},
    ],
    ids=repr,
)
def test_a_policy_that_makes_no_sense_is_an_error(wrong):
    with pytest.raises(ConfigurationError, match="RetryPolicy"):
        RetryPolicy(**wrong)


# ---------------------------------------------------------------------- positions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("earliest", Position("earliest")),
        ("latest", Position("latest")),
        ("1700000000000-3", Position("id", "1700000000000-3")),
        ("1700000000000", Position("id", "1700000000000-0")),
        (f"{2**64 - 1}-{2**64 - 1}", Position("id", f"{2**64 - 1}-{2**64 - 1}")),
        ("1970-01-01T00:00:01+00:00", Position("time", "1000")),
        ("1970-01-01T01:00:01.5+01:00", Position("time", "1500")),
        (datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC), Position("time", "2000")),
        (datetime(1900, 1, 1, tzinfo=timezone(timedelta(hours=1))), Position("earliest")),
        (Position("id", "1-1"), Position("id", "1-1")),
    ],
    ids=repr,
)
def test_a_position_is_a_place_an_id_or_a_time(text, expected):
    assert Position.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "newest", "1-", "-1", "1-2-3", "$", "\u0663-\u0661", "9" * 30, None, 17], ids=repr
)
def test_what_is_no_position_is_an_error_that_names_the_forms(text):
    with pytest.raises(ConfigurationError, match="is not a position: use 'earliest', 'latest'"):
        Position.parse(text)


@pytest.mark.parametrize("text", ["2030-01-31T12:00", "2030-01-31", datetime(2030, 1, 31)], ids=repr)
def test_a_time_without_a_zone_is_an_error_that_says_so(text):
    with pytest.raises(ConfigurationError, match="has no time zone"):
        Position.parse(text)


def test_an_id_of_more_than_64_bits_is_an_error():
    with pytest.raises(ConfigurationError, match="64 bits"):
        Position.parse(f"{2**64}-0")


# ---------------------------------------------------------------------- messages


def message(*fields: bytes, id: str = "1700000000123-4") -> Message:
    return Message("orders", 3, id, list(fields), codec.decode)


def test_a_message_tells_when_redis_stored_it():
    assert message(b"v", b"1").timestamp == datetime(2023, 11, 14, 22, 13, 20, 123000, UTC)


def test_a_message_is_decoded_when_it_is_first_read_and_once():
    calls = []

    def decode(fields: list[bytes]):
        calls.append(fields)
        return codec.decode(fields)

    given_message = Message("orders", 0, "1-0", [b"v", b"[1]", b"k", b"A1"], decode)
    assert calls == []
    assert (given_message.value, given_message.key, given_message.headers) == ([1], "A1", {})
    assert given_message.value is given_message.value
    assert len(calls) == 1


def test_a_message_that_cannot_be_decoded_shows_its_bytes_all_the_same():
    broken = message(b"v", b"{", b"x", b"\xff")
    with pytest.raises(Undecodable):
        _ = broken.value
    assert broken.raw == {b"v": b"{", b"x": b"\xff"}
    assert "orders/3/1700000000123-4" in repr(broken)


def test_ids_compare_as_pairs_of_numbers():
    assert id_pair("10-2") > id_pair("9-11") > id_pair(b"9-2")
    assert id_pair("17") == (17, 0)


def test_messages_made_several_at_once_are_as_those_made_one_by_one():
    entries = [(b"1-0", [b"v", b"[1]", b"k", b"A1"]), (b"1-1", [b"v", b"{"])]
    asked = []

    def prove():
        asked.append(1)
        return True

    source = Source("orders", 3, codec.decode, prove, "era-1")
    together = Message.several(source, entries, b"g")
    assert together is not None
    alone = [
        Message("orders", 3, id.decode(), fields, codec.decode, 1, prove, "era-1") for id, fields in entries
    ]
    for one, other in zip(together, alone, strict=True):
        assert [getattr(one, name) for name in Message.__slots__] == [
            getattr(other, name) for name in Message.__slots__
        ]
    assert together[0].value == [1]
    with pytest.raises(Undecodable):
        _ = together[1].value
    assert together[0].lease_valid()
    assert asked == [1]


def test_messages_without_headers_have_a_mapping_of_their_own_that_stays_the_same():
    one, other = (Message("orders", 0, "1-0", [b"v", b"1", b"k", b""], codec.decode) for _ in range(2))
    codec.decode_ahead([one, other])
    assert (one.value, one.key, one.headers) == (1, "", {})
    assert one.headers is one.headers is not other.headers


def test_messages_are_not_made_several_at_once_where_one_ends_with_the_field_that_must_not():
    source = Source("orders", 3, codec.decode, None, "")
    entries = [(b"1-0", [b"v", b"1"]), (b"1-1", [b"v", b"1", b"g", b"stock"])]
    assert Message.several(source, entries, b"g") is None
    assert [each.id for each in Message.several(source, entries, b"x") or ()] == ["1-0", "1-1"]
