"""Delayed messages that are due: moved into their topic, by the worker that does the upkeep.

Nobody asks each partition all the time. One zset (`bus.format.keys.Keys.due`) says of each partition when the
first of its messages is due, or earlier: `delay.lua` and `move.lua` write it in the script that changes what
waits. What it lacks (it was lost, or a publisher of an older version does not know it) is found by a rare
look at every partition.
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

#: How often upkeep looks for what is due. Seconds; half of what a message may be late by.
MOVE_SECONDS = 0.5
#: How often every partition is looked at. Seconds; by so much what the zset lacks may be late.
SWEEP_SECONDS = 30.0
#: After so long `Mover.run` leaves the rest to its next call: other upkeep has its turn. Seconds.
BUSY_SECONDS = 1.0

#: Messages, and about how many bytes of them, that one script moves: a few milliseconds of the server's time.
CHUNK = 100
CHUNK_BYTES = 256 * 1024
#: Partitions whose scripts are sent in one write, far below what the client's timeout allows.
AT_ONCE = 20
#: Partitions that are asked together whether anything waits there at all.
TOGETHER = 64
#: Commands in one write where every partition is looked at.
PIPELINE = 20_000

#: A partition: topic and number.
_Place = tuple[str, int]
_Failure = tuple[_Place, BusError]


class Mover:
    """Moves what is due on one bus. Several at once do no harm. Not thread-safe."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._sweep_at = 0.0
        """When every partition is to be looked at next, by the monotonic clock."""

    def run(self) -> int:
        """Move what is due into its partitions, in order of due time, then of publishing; how many messages.

        One script for each partition that has something due, until nothing is, or for BUSY_SECONDS. Makes
        a stream that has vanished again, with its groups. Raises BusUnavailable, or at the end, when all
        other partitions are done, the error of the first in which something went wrong: BusFull where
        memory is full (it stays due), BusError.
        """
        due, failures = self._look()
        moved, ends = 0, time.monotonic() + BUSY_SECONDS
        set_aside: dict[_Place, int] = {}
        while due and time.monotonic() < ends:
            now, due = due[:AT_ONCE], due[AT_ONCE:]
            for place, reply in zip(now, self._move(now), strict=True):
                if isinstance(reply, BusError):
                    failures.append((place, reply))
                    continue
                if reply is None:
                    continue  # the topic was deleted
                some, aside, more = reply
                moved += some
                if aside:
                    set_aside[place] = set_aside.get(place, 0) + aside
                if more:
                    due.append(place)
        failures += [(place, BusError(_set_aside(count))) for place, count in set_aside.items()]
        if failures:
            raise _failure(*failures[0], others=len(failures) - 1)
        return moved

    # ------------------------------------------------------------------ looking

    def _look(self) -> tuple[list[_Place], list[_Failure]]:
        """Return the partitions in which something is due, the earliest first; and those that err."""
        index = self._bus.keys.due
        clock, reply = self._bus.client.pipe([("TIME",), ("ZRANGE", index, 0, -1, "WITHSCORES")])
        now = int(seconds_of(clock) * 1000)
        # A key of a foreign type helps nobody: then every partition is asked each time.
        known = {} if isinstance(reply, ServerError) else dict(_pairs(reply))
        broken = isinstance(reply, ServerError) and reply.code == "WRONGTYPE"
        if not broken:
            check(reply)
        if broken or time.monotonic() >= self._sweep_at:
            due, failures = self._sweep(known, now, mend=not broken)
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
            if broken:
                text = f"the key {index} is no sorted set; delete it, and it is made again"
                failures.append((("all", 0), BusError(text)))
            return due, failures
        reached = sorted((score, name) for name, score in known.items() if score <= now)
        return (self._places(reached) if reached else []), []

    def _places(self, reached: list[tuple[float, bytes]]) -> list[_Place]:
        """Return the partitions that these members of the zset mean; drop those that mean none (any more)."""
        specs = self._bus.registry.specs()
        places, dropped = [], []
        for _, name in reached:
            place = _place(name, specs)
            if place is None:
                dropped.append(name)
            else:
                places.append(place)
        if dropped:
            self._bus.client.call("ZREM", self._bus.keys.due, *dropped)
        return places

    def _sweep(
        self, known: dict[bytes, float], now: int, *, mend: bool
    ) -> tuple[list[_Place], list[_Failure]]:
        """Look at every partition. With `mend` the zset learns what it lacks."""
        bus = self._bus
        places = self._with_delayed()
        found: list[tuple[float, _Place]] = []
        failures: list[_Failure] = []
        lacking: list[Argument] = []
        for at in range(0, len(places), PIPELINE):
            some = places[at : at + PIPELINE]
            asked: list[Command] = [
                ("ZRANGE", bus.keys.partition(*place).delayed, 0, 0, "WITHSCORES") for place in some
            ]
            for place, reply in zip(some, bus.client.pipe(asked), strict=True):
                if isinstance(reply, ServerError):
                    failures.append((place, error_of(reply)))
                    continue
                for _, score in _pairs(reply):
                    name = bus.keys.partition(*place).due_member.encode()
                    if score <= now:
                        found.append((score, place))
                    elif score < delayed.NEVER and known.get(name, delayed.NEVER) > score:
                        lacking += [repr(score), name]
        if lacking and mend:
            # Refused while memory is full: then the next look at every partition finds it.
            bus.client.pipe([("ZADD", bus.keys.due, "LT", *lacking)])
        return [place for _, place in sorted(found)], failures

    def _with_delayed(self) -> list[_Place]:
        """Return the partitions in which something may wait; one command asks for many of them."""
        bus = self._bus
        places = [(spec.name, n) for spec in bus.registry.specs().values() for n in range(spec.partitions)]
        chunks = [places[at : at + TOGETHER] for at in range(0, len(places), TOGETHER)]
        asked: list[Command] = [
            ("EXISTS", *(bus.keys.partition(*place).delayed for place in some)) for some in chunks
        ]
        replies = bus.client.pipe(asked)
        return [place for some, reply in zip(chunks, replies, strict=True) if check(reply) for place in some]

    # ------------------------------------------------------------------ moving

    def _move(self, places: Sequence[_Place]) -> list[Any]:
        """Return the replies of `move.lua`, errors among them; None if the topic is gone."""
        replies = self._run_script(places)
        vanished = [index for index, reply in enumerate(replies) if reply is None]
        if not vanished:
            return replies
        known = self._bus.registry.specs()
        restored = []
        for index in vanished:
            topic, partition = places[index]
            if topic in known:
                try:
                    self._bus.registry.restore_partition(topic, partition)
                    restored.append(index)
                except UnknownTopic:
                    continue
                except BusError as error:
                    replies[index] = error
        again = self._run_script([places[index] for index in restored])
        for index, reply in zip(restored, again, strict=True):
            replies[index] = reply
        return replies

    def _run_script(self, places: Sequence[_Place]) -> list[Any]:
        calls: list[tuple[list[str], list[Argument]]] = []
        for place in places:
            keys = self._bus.keys.partition(*place)
            calls.append(([*delayed.own_keys(keys), keys.due], [CHUNK, CHUNK_BYTES, keys.due_member]))
        replies = run_many(self._bus.client, "move", calls)
        return [error_of(reply) if isinstance(reply, ServerError) else reply for reply in replies]


def _pairs(reply: Sequence[Any]) -> Iterable[tuple[bytes, float]]:
    """Yield the members of a zset with their scores."""
    return ((member, float(score)) for member, score in zip(reply[::2], reply[1::2], strict=True))


def _place(name: bytes, specs: dict[str, TopicSpec]) -> _Place | None:
    topic, _, number = name.decode("utf-8", "replace").rpartition(":")
    spec = specs.get(topic)
    is_number = number.isascii() and number.isdigit() and len(number) <= len(str(MAX_PARTITIONS))
    if spec is None or not is_number or int(number) >= spec.partitions:
        return None
    return topic, int(number)


def _set_aside(count: int) -> str:
    what = "message or foreign record" if count == 1 else "messages or foreign records"
    return f"{count:,} {what} whose body is gone or cannot be read: set aside; `bus doctor` names them"


def _failure(place: _Place, error: BusError, *, others: int) -> BusError:
    kind = next((one for one in (BusFull, BusUnavailable) if isinstance(error, one)), BusError)
    more = f" So it is in {others} more partitions." if others else ""
    return kind(f"Delayed messages of {place[0]}/{place[1]} cannot be moved: {error}.{more}")
