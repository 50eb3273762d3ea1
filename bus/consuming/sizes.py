"""How many messages to fetch at once, so that their bytes stay bounded, however large they are.

Nobody knows how large the next messages are before they are here. So the count follows the mean size of the
last ones, and grows at most twofold from a small start. If a reply is far too long all the same, the
connection is given up in the midst of it. What it held is in the pending list, from which it comes in pages
that are bounded by bytes (recover.lua). For small messages the bound lies far above what one turn fetches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

#: What one turn should bring at most, about. Bytes.
FETCH_BYTES = 4 << 20
#: A reply with new messages that is longer than this is given up. Bytes.
MOST_BYTES = 16 << 20
#: Messages in the first turn.
FIRST = 20


class Sizes:
    """The known sizes of a group's messages in one process.

    Threads may share it. What one loses of another's lessons, it learns again with the next turn.
    """

    __slots__ = ("_begin", "_mean", "_most")

    def __init__(self, first: int = FIRST) -> None:
        """`first`: the most messages in the first turn."""
        self._mean = 0
        self._most = first
        self._begin = 0

    def bound(self, count: int) -> int:
        """Return `count`, or fewer if that would be too many bytes; 0 stays 0."""
        return min(count, self._most)

    def some(self, lanes: Sequence[T]) -> Sequence[T]:
        """Return the lanes from which one turn may fetch: all, or some by rotation if one message of each is
        too much.
        """
        if len(lanes) * self._mean <= FETCH_BYTES:
            return lanes
        count, begin = max(1, FETCH_BYTES // self._mean), self._begin % len(lanes)
        self._begin = begin + count
        return [*lanes[begin:], *lanes[:begin]][:count]

    def learn(self, messages: int, size: int) -> None:
        """Take in a turn that brought so many messages in so many bytes."""
        if messages:
            self._mean = size // messages
            self._most = max(1, min(2 * self._most, FETCH_BYTES // max(1, self._mean)))
