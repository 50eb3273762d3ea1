"""Names of keys: what belongs together shares a hash tag, and nothing collides."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.format.keys import Keys, pad_id, unpad_id
from bus.values import id_pair

numbers = st.integers(0, 2**64 - 1)
ids = st.builds(lambda ms, seq: f"{ms}-{seq}", numbers, numbers)
names = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)


@given(ids)
def test_a_padded_id_can_be_read_back(message_id):
    assert unpad_id(pad_id(message_id)) == message_id


@given(ids, ids)
def test_padded_ids_sort_as_text_as_the_stream_sorts_them(left, right):
    assert (pad_id(left) < pad_id(right)) == (id_pair(left) < id_pair(right))


def test_the_keys_of_a_bus_carry_its_prefix():
    keys = Keys("shop")
    assert (keys.meta, keys.topics, keys.groups) == ("shop:meta", "shop:topics", "shop:groups")
    assert (keys.workers, keys.control) == ("shop:workers", "shop:control")


def test_the_keys_of_a_partition_are_as_documented():
    keys = Keys("bus").partition("orders", 3)
    assert keys.stream == "bus:{orders:3}"
    assert keys.lease("inventory", "0") == "bus:{orders:3}:lease:inventory:0"
    assert keys.retry("inventory") == "bus:{orders:3}:retry:inventory"
    assert keys.held("inventory") == "bus:{orders:3}:held:inventory"
    assert keys.state("inventory") == "bus:{orders:3}:state:inventory"
    assert keys.mark("inventory") == "bus:{orders:3}:mark:inventory"
    assert keys.dead("inventory") == "bus:{orders:3}:dead:inventory"
    assert keys.once("order-991") == "bus:{orders:3}:once:order-991"


def all_keys(prefix: str, topic: str, partition: int, group: str, lane: str) -> list[str]:
    keys = Keys(prefix).partition(topic, partition)
    return [keys.stream, keys.lease(group, lane), *keys.of_group(group), keys.once(group)]


@given(names, names, st.integers(0, 1023), names, names)
def test_all_keys_of_a_partition_share_its_hash_tag(prefix, topic, partition, group, lane):
    for key in all_keys(prefix, topic, partition, group, lane):
        tag = re.search(r"\{(.*?)\}", key)
        assert tag is not None
        assert tag[1] == f"{topic}:{partition}"


@given(st.lists(st.tuples(names, st.integers(0, 1023), names, names), min_size=2, max_size=8, unique=True))
def test_no_two_keys_are_equal(places):
    seen: set[str] = set()
    for topic, partition in {(topic, partition) for topic, partition, _, _ in places}:
        keys = Keys("bus").partition(topic, partition)
        groups = {group for t, p, group, _ in places if (t, p) == (topic, partition)}
        lanes = {(group, lane) for t, p, group, lane in places if (t, p) == (topic, partition)}
        made = [keys.stream, *(keys.lease(group, lane) for group, lane in lanes)]
        for group in groups:
            made += keys.of_group(group)
        assert len(set(made)) == len(made)
        assert seen.isdisjoint(made)
        seen.update(made)


def test_keys_are_the_same_object_each_time_because_they_are_made_for_every_message():
    assert Keys("bus").partition("orders", 3) is Keys("bus").partition("orders", 3)


@pytest.mark.parametrize("message_id", ["0-0", f"{2**64 - 1}-{2**64 - 1}"])
def test_the_first_and_the_last_possible_id_can_be_padded(message_id):
    assert len(pad_id(message_id)) == 41
    assert unpad_id(pad_id(message_id)) == message_id
