"""How many messages are fetched at once, by their sizes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.consuming.sizes import FETCH_BYTES, FIRST, Sizes


def test_small_messages_come_in_full_batches_after_a_few_turns() -> None:
    sizes, counts = Sizes(), []
    for _ in range(7):
        counts.append(sizes.bound(500))
        sizes.learn(counts[-1], counts[-1] * 200)
    assert counts == [20, 40, 80, 160, 320, 500, 500]


def test_after_large_messages_few_are_fetched_and_then_twice_as_many_at_most() -> None:
    sizes = Sizes()
    for _ in range(10):
        sizes.learn(500, 500 * 200)
    sizes.learn(10, 10 << 20)
    assert sizes.bound(500) == FETCH_BYTES >> 20
    sizes.learn(1, 200)
    assert sizes.bound(500) == 2 * (FETCH_BYTES >> 20)


def test_one_at_least_is_fetched_and_nothing_where_nothing_is_wanted() -> None:
    sizes = Sizes()
    assert sizes.bound(0) == 0
    sizes.learn(1, 100 * FETCH_BYTES)
    assert sizes.bound(500) == 1
    sizes.learn(0, 500)
    assert sizes.bound(500) == 1


def test_where_one_message_of_each_lane_is_too_much_the_lanes_have_their_turns() -> None:
    sizes, lanes = Sizes(), list(range(10))
    assert list(sizes.some(lanes)) == lanes
    sizes.learn(1, FETCH_BYTES // 3)
    turns = [list(sizes.some(lanes)) for _ in range(10)]
    assert all(len(turn) == 3 for turn in turns)
    assert sorted(lane for turn in turns for lane in turn) == sorted(lanes * 3)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 1 << 24))))
def test_what_is_fetched_never_more_than_doubles_and_never_exceeds_the_bytes_by_the_last_mean(turns) -> None:
    sizes = Sizes()
    before = FIRST
    for count, size in turns:
        sizes.learn(count, count * size)
        now = sizes.bound(1 << 30)
        assert 1 <= now <= 2 * before
        if count and now > 1:
            assert now * size <= FETCH_BYTES
        before = now
