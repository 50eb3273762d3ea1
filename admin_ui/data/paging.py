"""One bounded piece of a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
Other = TypeVar("Other")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Page `number` (from 1) of `pages`, holding `rows` of `total`."""

    rows: Sequence[T]
    number: int
    pages: int
    total: int
    first: int
    """Ordinal (from 1) of the first row; 0 if there is none."""

    @classmethod
    def of(cls, everything: Sequence[T], number: str | int | None, size: int) -> Page[T]:
        """Return the page of this number; for one that does not exist the nearest that does."""
        pages = max(1, -(-len(everything) // size))
        number = min(max(_whole(number), 1), pages)
        start = (number - 1) * size
        rows = everything[start : start + size]
        return cls(rows, number, pages, len(everything), start + 1 if rows else 0)

    def map(self, change: Callable[[T], Other]) -> Page[Other]:
        """Return the same page, with other rows made of these."""
        return Page([change(row) for row in self.rows], self.number, self.pages, self.total, self.first)

    @property
    def last(self) -> int:
        """Ordinal of the last row; 0 if there is none."""
        return self.first + len(self.rows) - 1 if self.rows else 0

    @property
    def previous(self) -> int | None:
        return self.number - 1 if self.number > 1 else None

    @property
    def next(self) -> int | None:
        return self.number + 1 if self.number < self.pages else None


def _whole(text: str | int | None) -> int:
    """Read a number from a query string; anything else is 1."""
    try:
        return int(text or 1)
    except ValueError:
        return 1
