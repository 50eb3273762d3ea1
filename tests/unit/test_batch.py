"""A batch keeps the order of keys, whatever its handler refuses, in whatever way it goes through it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import Retry
from bus.format import codec
from bus.values import Message
from workers.batch import Batch, OutOfOrder


def message(number, key):
    fields = [b"v", b"1"] if key is None else [b"v", b"1", b"k", key.encode()]
    return Message("orders", 0, f"1-{number}", fields, codec.decode)


def batch(keys, ordering="key"):
    return Batch([message(number, key) for number, key in enumerate(keys, 1)], ordering)


def ids(messages):
    return [each.id for each in messages]


def test_a_loop_passes_over_those_that_wait_behind_one_that_is_tried_again():
    given = batch("abacab")
    seen = []
    for each in given:
        seen.append(each.id)
        if each.id == "1-1":
            given.retry(each)
    assert seen == ["1-1", "1-2", "1-4", "1-6"]
    assert ids(given.passed_over) == ["1-3", "1-5"]
    assert (len(given), ids(given)) == (4, seen)
    given.check()


def test_messages_without_a_key_and_of_unordered_groups_wait_for_nobody():
    for one in (batch([None, None, None]), batch("aaa", "none")):
        for each in list(one):
            one.retry(each)
        assert one.passed_over == []
        one.check()


def test_with_the_order_of_a_partition_all_wait():
    given = batch(["a", None, "b"], "partition")
    for each in given:
        given.retry(each)
    assert ids(given.passed_over) == ["1-2", "1-3"]


def test_those_behind_a_dead_letter_do_not_wait():
    given = batch("aaa")
    for each in given:
        given.reject(each, "never")
    assert given.passed_over == []
    given.check()


@pytest.mark.parametrize(
    "take",
    [list, lambda batch: [batch[0], batch[1]], lambda batch: batch[:], lambda batch: list(reversed(batch))],
    ids=["a list", "by index", "a slice", "backwards"],
)
def test_to_try_one_again_whose_successor_the_handler_has_is_an_error_at_once_and_when_it_is_caught(take):
    given = batch("aa")
    taken = take(given)
    first = min(taken, key=lambda each: each.id)
    with pytest.raises(OutOfOrder, match=r"1-1.*cannot be tried again.*1-2"):
        given.retry(first)
    with pytest.raises(OutOfOrder):
        given.check()


def test_to_try_all_again_beginning_at_the_end_is_no_break():
    given = batch("aab")
    for each in reversed(given):
        given.retry(each)
    given.check()
    assert list(given.refused) == ["1-3", "1-2", "1-1"]


def test_to_ask_whether_a_message_is_in_the_batch_takes_none():
    given = batch("aa")
    first = next(iter(given))
    assert first in given
    given.retry(first)
    assert ids(given.passed_over) == ["1-2"]


@given(
    st.lists(st.sampled_from(["a", "b", "c", None]), max_size=20),
    st.sets(st.integers(1, 20)),
    st.sets(st.integers(1, 20)),
    st.sampled_from(["key", "partition", "none"]),
    st.integers(0, 20),
)
def test_whatever_is_refused_in_a_loop_nothing_is_handled_after_one_of_its_key_that_is_tried_again(
    keys, retried, rejected, ordering, again_after
):
    given = batch(keys, ordering)
    all_of_them = {each.id: each for each in batch(keys)}
    handled = []

    def loop(until):
        for number, each in enumerate(given):
            if number >= until:
                return
            if each.id in handled or each.id in given.refused:
                continue
            place = int(each.id[2:])
            if place in retried:
                given.retry(each)
            elif place in rejected:
                given.reject(each, "never")
            else:
                handled.append(each.id)

    loop(again_after)  # one that is left in the middle, as with break
    loop(len(keys))
    given.check()
    # Every message is in one place
    assert sorted([*handled, *given.refused, *ids(given.passed_over)]) == sorted(all_of_them)

    def tied(one, other):
        return ordering == "partition" or (one.key == other.key is not None and ordering == "key")

    for refused, why in given.refused.items():
        if isinstance(why, Retry):
            head = all_of_them[refused]
            behind = [
                id for id, each in all_of_them.items() if int(id[2:]) > int(refused[2:]) and tied(each, head)
            ]
            assert not set(behind) & set(handled)
