"""Counts that may be unknown (None) or known as "at least" so many, and their sums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lag:
    """How many messages a group was not given yet; also any other count that may be "at least" so many."""

    count: int
    exact: bool = True
    """False: counting was cut short, or a part is unknown, so it is at least `count`."""

    @property
    def short(self) -> str:
        """The count for a table: `1,204`, or `≥ 1,204`."""
        return f"{self.count:,}" if self.exact else f"≥ {self.count:,}"

    @property
    def words(self) -> str:
        """The count in a sentence: `1,204`, or `at least 1,204`."""
        return f"{self.count:,}" if self.exact else f"at least {self.count:,}"


def total(numbers: Iterable[int | Lag | None]) -> Lag | None:
    """Return the sum: exact if all are, "at least" if some are unknown, None if all are. Of no numbers: 0."""
    count, exact, known, unknown = 0, True, False, False
    for number in numbers:
        if number is None:
            unknown = True
            continue
        known = True
        if isinstance(number, Lag):
            count += number.count
            exact = exact and number.exact
        else:
            count += number
    if unknown and not known:
        return None
    return Lag(count, exact=exact and not unknown)


def known_total(numbers: Iterable[int | None]) -> int | None:
    """Return the sum of those that are known; None if there are numbers and all are unknown."""
    summed = total(numbers)
    return None if summed is None else summed.count


def exact_total(numbers: Iterable[int | None]) -> int | None:
    """Return the sum; None if one of them is unknown: a rate from it would be wrong."""
    summed = total(numbers)
    return summed.count if summed is not None and summed.exact else None
