"""The fast way of packing stores what the general way stores, and refuses what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import hiredis
from hypothesis import example, given
from hypothesis import strategies as st

from bus.errors import InvalidMessage
from bus.format.keys import Keys
from bus.format.partition import partition_of
from bus.publishing import draft as drafts
from bus.publishing.options import PublishOptions
from bus.publishing.packer import _KEY_TABLE, _TABLE, Packer
from bus.streams.wire import pack
from bus.values import TopicSpec

PARTITIONS = 8
KEYS = Keys("bus")
SPEC = TopicSpec(name="orders", partitions=PARTITIONS)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
anything = json_values | st.binary() | st.integers() | st.sampled_from([object(), {1: 2}, {"a": {3}}, "null"])
keys = st.none() | st.text(max_size=12) | st.sampled_from([7, b"k", "\ud800", "x" * (_KEY_TABLE + 1)])


def packer(max_bytes: int = 1 << 20) -> Packer:
    return Packer(SPEC, KEYS, max_bytes=max_bytes, window=600)


def general(value: object, key: object, turn: int, max_bytes: int) -> tuple[int, bytes]:
    draft = drafts.make("orders", value, PublishOptions(key), max_bytes=max_bytes)  # type: ignore[arg-type]
    partition = draft.partition(PARTITIONS, lambda: turn)
    return partition, pack(draft.command(KEYS.partition("orders", partition), 600))


@given(anything, keys, st.integers(0, 1000), st.sampled_from([20, 1 << 20]))
@example("x" * (_TABLE - 2), "k", 0, 1 << 20)
@example("x" * _TABLE, None, 3, 1 << 20)
@example(float("nan"), None, 0, 1 << 20)
@example({"note": None}, "k", 0, 1 << 20)
def test_both_ways_store_the_same_bytes_or_refuse_with_the_same_words(
    value: object, key: object, turn: int, max_bytes: int
) -> None:
    def fast() -> tuple[str, int, bytes]:
        (topic, partition), packed = packer(max_bytes).pack(value, key, turn)  # type: ignore[arg-type]
        return topic, partition, packed

    assert outcome(fast) == outcome(lambda: ("orders", *general(value, key, turn, max_bytes)))


def outcome(work: Callable[[], tuple[str, int, bytes]]) -> tuple[str, int, bytes] | str:
    try:
        return work()
    except InvalidMessage as error:
        return str(error)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_the_key_decides_the_partition(key: str) -> None:
    (_, partition), _ = packer().pack(1, key, 0)
    assert partition == partition_of(key, PARTITIONS)


@given(json_values, keys)
def test_what_is_packed_is_one_whole_command(value: object, key: object) -> None:
    try:
        _, packed = packer().pack(value, key, 0)  # type: ignore[arg-type]
    except InvalidMessage:
        return
    reader = hiredis.Reader()
    reader.feed(packed)
    command = reader.gets()
    assert command[0] == b"XADD"
    assert command[2:4] == [b"NOMKSTREAM", b"*"]
    assert reader.gets() is False
