"""Somebody who writes into the bus's keys by hand, and later tidies up, but for what is in a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bus.client import Bus
from bus.errors import BusError

_Commands = list[tuple[Any, ...]]


class Stranger:
    """Writes one kind of junk after the other."""

    def __init__(self, bus: Bus, partitions: dict[str, int]) -> None:
        self._bus = bus
        self._partitions = partitions
        self.added = 0
        """Entries that nobody can read, and that stay in a stream: a dead letter for each group."""

    def write(self, pick: float) -> Callable[[], None] | None:
        """Write junk of the kind that `pick` (0 to below 1) says; what undoes it. None: Redis is away."""
        keys = self._bus.keys
        partition = int(pick * 7919) % self._partitions["keyed"]
        own = keys.partition("keyed", partition)
        entries: list[_Commands] = [
            [("XADD", own.stream, "NOMKSTREAM", "*", "v", "1", "k", "a", "g", b"\xff")],
            [("XADD", own.stream, "NOMKSTREAM", "*", "v", b"{\xff", "k", "a")],
            [("XADD", own.stream, "NOMKSTREAM", "*", "nothing", "known")],
        ]
        others: list[tuple[_Commands, _Commands]] = [
            ([("HSET", keys.workers, "stranger", b"\xff{")], [("HDEL", keys.workers, "stranger")]),
            ([("HSET", keys.workers, "stranger", "{}")], [("HDEL", keys.workers, "stranger")]),
            ([("HSET", keys.groups, "keyed/stranger", "[1")], [("HDEL", keys.groups, "keyed/stranger")]),
            ([("HSET", keys.topics, "strange", b"\xfe")], [("HDEL", keys.topics, "strange")]),
            ([("HSET", own.state("bykey"), "17-1", "{}")], [("HDEL", own.state("bykey"), "17-1")]),
            ([("HSET", own.state("booked"), "dead", "many")], [("HDEL", own.state("booked"), "dead")]),
            ([("ZADD", own.retry("bykey"), 0, "junk")], [("ZREM", own.retry("bykey"), "junk")]),
            ([("ZADD", own.held("crates"), 0, b"\xff")], [("ZREM", own.held("crates"), b"\xff")]),
            ([("ZADD", own.delayed, 0, "junk")], [("ZREM", own.delayed, "junk")]),
            ([("SET", own.lease("waiters", "junk"), b"\xff")], [("DEL", own.lease("waiters", "junk"))]),
        ]
        number = int(pick * (len(entries) + len(others)))
        try:
            if number < len(entries):
                self._do(entries[number])
                self.added += 1
                return lambda: None
            wrote, undoes = others[number - len(entries)]
            self._do(wrote)
        except BusError:
            return None
        return lambda: self._undo(undoes)

    def _do(self, commands: _Commands) -> None:
        for command in commands:
            self._bus.client.call(*command)

    def _undo(self, commands: _Commands) -> None:
        try:
            self._do(commands)
        except BusError as error:
            raise AssertionError(f"The stranger cannot tidy up: {error}") from error
