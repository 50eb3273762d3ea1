"""Finds the exact lag: proven if that needs no counting, else counted; "at least" where that was cut short.

The server's own figure is NULL or wrong in many cases (a group that was created or moved without
ENTRIESREAD, a stream trimmed past the group, Redis before 7.4 after a restart). So it is believed only
from servers that keep it, and only where nothing contradicts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bus.observe.facts import GroupFacts, StreamFacts, ask
from bus.streams.commands import text
from bus.streams.connect import Client, check
from bus.streams.wire import Command
from bus.sums import Lag
from bus.values import id_pair

#: Entries in one reply, entries counted for one group in one partition, and in one call.
ENTRIES_A_REPLY = 1_000
PARTITION_BUDGET = 10_000
CALL_BUDGET = 50_000

#: Round trips that counting may add, and about how many bytes each may bring: entries come with payload.
ROUNDS = 12
_ROUND_BYTES = 8 << 20


def proven(stream: StreamFacts, group: GroupFacts, *, keeps_lag: bool) -> int | None:
    """Return the lag if it can be known without counting, else None.

    `keeps_lag`: the server's own figure outlives restarts (see Info). The others hold on any server.
    """
    if stream.first_id is None or stream.last_id is None:
        return 0
    position, first = id_pair(group.position), id_pair(stream.first_id)
    if position >= id_pair(stream.last_id):
        return 0
    if position <= first:
        return stream.length - (position == first)
    # The first message lies behind and the last ahead: a figure beyond that is wrong.
    if keeps_lag and group.lag is not None and 1 <= group.lag < stream.length:
        return group.lag
    return None


@dataclass(slots=True)
class LagCount:
    """Counts messages after a position, up to `end`, which was the last id when it began."""

    stream: str
    after: str
    end: str
    counted: int = 0
    size: int = 0
    """Bytes of what was counted."""
    complete: bool = False

    def page(self, share: int, bytes_share: int) -> int:
        """Return how many entries to ask for next."""
        mean = self.size // self.counted if self.counted else 0
        most = bytes_share // mean if mean else ENTRIES_A_REPLY
        return max(1, min(ENTRIES_A_REPLY, share, most, PARTITION_BUDGET - self.counted))

    def command(self, page: int) -> Command:
        return ("XRANGE", self.stream, f"({self.after}", self.end, "COUNT", page)

    def take(self, page: int, entries: Sequence[Any]) -> None:
        """Count a reply to `command(page)`."""
        self.complete = len(entries) < page
        self.counted += len(entries)
        self.size += sum(len(part) for _, fields in entries for part in fields)
        if entries:
            self.after = text(entries[-1][0])

    def lag(self) -> Lag:
        return Lag(self.counted, exact=self.complete)


def count(client: Client, counts: Sequence[LagCount]) -> None:
    """Go on with all counts at once, in pages, until they are complete or the budgets are spent."""
    left = CALL_BUDGET
    for _ in range(ROUNDS):
        unfinished = [count for count in counts if not count.complete and count.counted < PARTITION_BUDGET]
        if not unfinished or left < len(unfinished):
            return
        share, bytes_share = left // len(unfinished), _ROUND_BYTES // len(unfinished)
        pages = [count.page(share, bytes_share) for count in unfinished]
        replies = ask(client, [count.command(page) for count, page in zip(unfinished, pages, strict=True)])
        for count, page, reply in zip(unfinished, pages, replies, strict=True):
            before = count.counted
            count.take(page, check(reply))
            left -= count.counted - before
