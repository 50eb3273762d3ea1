"""Sums with unknown numbers: never 0 where nothing is known, never exact where something is not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.sums import Lag, exact_total, known_total, total

counts = st.integers(0, 10**12)
numbers = st.one_of(st.none(), counts, st.builds(Lag, counts, exact=st.booleans()))


@pytest.mark.parametrize(
    ("parts", "lag"),
    [
        ([], Lag(0)),
        ([None, None], None),
        ([Lag(2), Lag(3)], Lag(5)),
        ([1, Lag(2)], Lag(3)),
        ([Lag(0)], Lag(0)),
        ([Lag(2), Lag(3, exact=False)], Lag(5, exact=False)),
        ([Lag(1, exact=False), 2], Lag(3, exact=False)),
        ([Lag(2), None], Lag(2, exact=False)),
        ([1, None], Lag(1, exact=False)),
        ([Lag(0), None], Lag(0, exact=False)),
    ],
)
def test_a_sum_is_exact_only_if_all_of_it_is_known(parts: list[int | Lag | None], lag: Lag | None) -> None:
    assert total(parts) == lag


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), counts), min_size=1))
def test_a_sum_is_unknown_only_if_all_of_it_is_and_else_at_least_what_is_known(
    parts: list[int | None],
) -> None:
    known = [part for part in parts if part is not None]
    assert (total(parts) is None) == (not known)
    assert known_total(parts) == (sum(known) if known else None)
    assert exact_total(parts) == (sum(known) if len(known) == len(parts) else None)


@settings(deadline=None)
@given(st.lists(counts))
def test_a_sum_of_what_is_known_is_their_sum(parts: list[int]) -> None:
    assert total(parts) == Lag(sum(parts))
    assert known_total(parts) == exact_total(parts) == sum(parts)


@settings(deadline=None)
@given(st.lists(numbers), st.randoms())
def test_the_order_does_not_matter(parts: list[int | Lag | None], random: st.DrawFn) -> None:
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # a random.Random
    assert total(shuffled) == total(parts)


@settings(deadline=None)
@given(st.lists(numbers, min_size=1), st.lists(numbers, min_size=1))
def test_a_sum_of_sums_is_the_sum_of_all(
    first: list[int | Lag | None], second: list[int | Lag | None]
) -> None:
    assert total([total(first), total(second)]) == total([*first, *second])


@settings(deadline=None)
@given(st.lists(counts), st.lists(numbers))
def test_one_more_number_makes_no_sum_smaller(parts: list[int], more: list[int | Lag | None]) -> None:
    summed = total([*parts, *more])
    assert summed is None or summed.count >= sum(parts)
    assert summed is None or not summed.exact or None not in more
