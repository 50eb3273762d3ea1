"""Moves delayed messages that are due into their topics, in the worker that does the upkeep.

It does not ask each partition all the time. One zset (`bus.format.keys.Keys.due`) says of each partition when
the first of its messages is due, or earlier. The scripts that change what waits, `delay.lua` and `move.lua`,
write it too. What the zset lacks (it was removed, or publishers of an older version do not know it) is found
by a rare look at every partition.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from bus.errors import BusError, BusFull, BusUnavailable, ServerError, UnknownTopic
from bus.operating import delayed
from bus.streams.commands import run_many
from bus.streams.connect import check, error_of, seconds_of
from bus.values import MAX_PARTITIONS

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.streams.wire import Argument, Command
    from bus.values import TopicSpec

#: How often upkeep looks for what is due: half of what a message may be late by. Seconds.
MOVE_SECONDS = 0.5
#: How often every partition is looked at: what the zset lacks may be late by so much. Seconds.
SWEEP_SECONDS = 30.0
#: After so long `Mover.run` leaves the rest to its next call, and other upkeep is done first. Seconds.
BUSY_SECONDS = 1.0

#: Messages that one script moves, and about how many bytes of them: a few milliseconds of the server's time.
MESSAGES_A_SCRIPT = 100
BYTES_A_SCRIPT = 256 * 1024
#: Partitions whose scripts are sent in one write, far below what the client's timeout allows.
SCRIPTS_A_WRITE = 20
#: Partitions that one EXISTS asks whether anything waits there at all.
PARTITIONS_AN_EXISTS = 64
#: Commands in one write where every partition is looked at.
COMMANDS_A_WRITE = 20_000

#: A partition: topic and number.
_PartitionRef = tuple[str, int]
_Failure = tuple[_PartitionRef, BusError]


class Mover:
    """Moves what is due on one bus. Several movers at once do no harm. Not thread-safe."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._sweep_at = 0.0
        """When every partition is to be looked at next, by the monotonic clock."""

    def run(self) -> int:
        """Move what is due into its partitions, by due time, then as published; return how many messages.

        One script for each partition that has something due, until nothing is due, or for BUSY_SECONDS. A
        stream that is gone is made again, with its groups. Raises BusUnavailable; or at the end, when all
        other partitions are done, the error of the first partition in which something went wrong: BusFull
        where memory is full (the messages stay due), else BusError.
        """
        due, failures = self._look()
        moved, ends = 0, time.monotonic() + BUSY_SECONDS
        set_aside: dict[_PartitionRef, int] = {}
        while due and time.monotonic() < ends:
            partitions, due = due[:SCRIPTS_A_WRITE], due[SCRIPTS_A_WRITE:]
            for partition, reply in zip(partitions, self._move(partitions), strict=True):
                if isinstance(reply, BusError):
                    failures.append((partition, reply))
                    continue
                if reply is None:
                    continue  # the topic was deleted
                moved_here, aside, more = reply
                moved += moved_here
                if aside:
                    set_aside[partition] = set_aside.get(partition, 0) + aside
                if more:
                    due.append(partition)
        failures += [(partition, BusError(_set_aside(count))) for partition, count in set_aside.items()]
        if failures:
            raise _failure(*failures[0], others=len(failures) - 1)
        return moved

    # ------------------------------------------------------------------ looking

    def _look(self) -> tuple[list[_PartitionRef], list[_Failure]]:
        """Return the partitions in which something is due, the earliest first; and those with an error."""
        index = self._bus.keys.due
        clock, reply = self._bus.client.pipe([("TIME",), ("ZRANGE", index, 0, -1, "WITHSCORES")])
        now = int(seconds_of(clock) * 1000)
        # A key of a foreign type cannot be used: then every partition is asked each time.
        first_due = {} if isinstance(reply, ServerError) else dict(_pairs(reply))
        broken = isinstance(reply, ServerError) and reply.code == "WRONGTYPE"
        if not broken:
            check(reply)
        if broken or time.monotonic() >= self._sweep_at:
            due, failures = self._sweep(first_due, now, mend=not broken)
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
            if broken:
                text = f"the key {index} is no sorted set; delete it, and it is made again"
                failures.append((("all", 0), BusError(text)))
            return due, failures
        reached = sorted((score, name) for name, score in first_due.items() if score <= now)
        return (self._partitions(reached) if reached else []), []

    def _partitions(self, reached: list[tuple[float, bytes]]) -> list[_PartitionRef]:
        """Return the partitions that these members of the zset name; remove the members that name none."""
        specs = self._bus.registry.specs()
        partitions, nameless = [], []
        for _, name in reached:
            partition = _partition(name, specs)
            if partition is None:
                nameless.append(name)
            else:
                partitions.append(partition)
        if nameless:
            self._bus.client.call("ZREM", self._bus.keys.due, *nameless)
        return partitions

    def _sweep(
        self, first_due: dict[bytes, float], now: int, *, mend: bool
    ) -> tuple[list[_PartitionRef], list[_Failure]]:
        """Look at every partition. With `mend`, add to the zset what it lacks.

        `first_due`: what the zset says, partition → when the first of its messages is due.
        """
        bus = self._bus
        partitions = self._with_delayed()
        due: list[tuple[float, _PartitionRef]] = []
        failures: list[_Failure] = []
        lacking: list[Argument] = []
        for start in range(0, len(partitions), COMMANDS_A_WRITE):
            page = partitions[start : start + COMMANDS_A_WRITE]
            asked: list[Command] = [
                ("ZRANGE", bus.keys.partition(*partition).delayed, 0, 0, "WITHSCORES") for partition in page
            ]
            for partition, reply in zip(page, bus.client.pipe(asked), strict=True):
                if isinstance(reply, ServerError):
                    failures.append((partition, error_of(reply)))
                    continue
                for _, score in _pairs(reply):
                    name = bus.keys.partition(*partition).due_member.encode()
                    if score <= now:
                        due.append((score, partition))
                    elif score < delayed.NEVER and first_due.get(name, delayed.NEVER) > score:
                        lacking += [repr(score), name]
        if lacking and mend:
            # Refused while memory is full: then the next look at every partition finds it.
            bus.client.pipe([("ZADD", bus.keys.due, "LT", *lacking)])
        return [partition for _, partition in sorted(due)], failures

    def _with_delayed(self) -> list[_PartitionRef]:
        """Return the partitions in which something may wait; one command asks for many of them."""
        bus = self._bus
        refs = [(spec.name, n) for spec in bus.registry.specs().values() for n in range(spec.partitions)]
        starts = range(0, len(refs), PARTITIONS_AN_EXISTS)
        pages = [refs[start : start + PARTITIONS_AN_EXISTS] for start in starts]
        asked: list[Command] = [
            ("EXISTS", *(bus.keys.partition(*partition).delayed for partition in page)) for page in pages
        ]
        replies = bus.client.pipe(asked)
        return [
            partition
            for page, reply in zip(pages, replies, strict=True)
            if check(reply)
            for partition in page
        ]

    # ------------------------------------------------------------------ moving

    def _move(self, partitions: Sequence[_PartitionRef]) -> list[Any]:
        """Return the replies of `move.lua`, errors among them; None if the topic is gone."""
        replies = self._run_script(partitions)
        gone = [index for index, reply in enumerate(replies) if reply is None]
        if not gone:
            return replies
        specs = self._bus.registry.specs()
        restored = []
        for index in gone:
            topic, partition = partitions[index]
            if topic in specs:
                try:
                    self._bus.registry.restore_partition(topic, partition)
                    restored.append(index)
                except UnknownTopic:
                    continue
                except BusError as error:
                    replies[index] = error
        again = self._run_script([partitions[index] for index in restored])
        for index, reply in zip(restored, again, strict=True):
            replies[index] = reply
        return replies

    def _run_script(self, partitions: Sequence[_PartitionRef]) -> list[Any]:
        calls: list[tuple[list[str], list[Argument]]] = []
        for partition in partitions:
            keys = self._bus.keys.partition(*partition)
            limits = [MESSAGES_A_SCRIPT, BYTES_A_SCRIPT]
            calls.append(([*delayed.own_keys(keys), keys.due], [*limits, keys.due_member]))
        replies = run_many(self._bus.client, "move", calls)
        return [error_of(reply) if isinstance(reply, ServerError) else reply for reply in replies]


def _pairs(reply: Sequence[Any]) -> Iterable[tuple[bytes, float]]:
    """Yield the members of a zset with their scores."""
    return ((member, float(score)) for member, score in zip(reply[::2], reply[1::2], strict=True))


def _partition(name: bytes, specs: dict[str, TopicSpec]) -> _PartitionRef | None:
    """Return the partition that a member of the zset names; None if there is none of that name."""
    topic, _, number = name.decode("utf-8", "replace").rpartition(":")
    spec = specs.get(topic)
    is_number = number.isascii() and number.isdigit() and len(number) <= len(str(MAX_PARTITIONS))
    if spec is None or not is_number or int(number) >= spec.partitions:
        return None
    return topic, int(number)


def _set_aside(count: int) -> str:
    what = "message or foreign record" if count == 1 else "messages or foreign records"
    return f"{count:,} {what} whose body is gone or cannot be read: set aside; `bus doctor` names them"


def _failure(partition: _PartitionRef, error: BusError, *, others: int) -> BusError:
    kind = next((special for special in (BusFull, BusUnavailable) if isinstance(error, special)), BusError)
    more = f" So it is in {others} more partitions." if others else ""
    return kind(f"Delayed messages of {partition[0]}/{partition[1]} cannot be moved: {error}.{more}")
