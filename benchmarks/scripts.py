"""How long each Lua script holds the server, where there is as much as there can be.

    python -m benchmarks.scripts [--redis7] [--rounds N] [--entries N] [--waiting N] [--only NAME]

A private server with one partition of 1,000,000 messages, of which 200,000 are pending, wait for a retry or
are held back, and a topic of 1,024 partitions. The verbs are called as workers and operators call them; the
server's own SLOWLOG says how long each script, and each other command that matters, ran. What else the
machine does lengthens single runs; so there is the median too, and of several rounds the best longest run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import django
import orjson

from benchmarks import contest
from bus.client import Bus
from bus.consuming.lane import Lane
from bus.consuming.outcomes import Outcomes
from bus.consuming.portions import portions
from bus.consuming.turn import Turns
from bus.format.keys import PartitionKeys, pad_id
from bus.format.lane_id import LaneId
from bus.operating import deadletters, delayed, groups
from bus.operating.deadletters import LetterRef, Place
from bus.operating.delayed import DelayedRef
from bus.streams import commands
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.transactions import marks
from bus.upkeep import due, retention
from bus.values import TopicSpec

GROUP, LEASE = "stock", "worker:1"
VALUE = b'{"sku":"A1","qty":2,"note":"' + b"x" * 150 + b'"}'
LARGE = b'"' + b"x" * (1 << 20) + b'"'
#: Microseconds: what the SLOWLOG leaves out.
SHORT = 300
#: Bytes of an argument that the SLOWLOG shows at least.
CUT = 100
#: When the first message of a partition was published: ids are BASE-0, BASE+1-0, …
BASE = 1_700_000_000_000

Command = tuple[Any, ...]


def id_of(number: int) -> str:
    return f"{BASE + number}-0"


class Bench:
    """A bus on a server of its own, and what its SLOWLOG has said."""

    def __init__(self, server: EmbeddedServer, entries: int, waiting: int) -> None:
        self.bus = Bus(server.url, prefix="bench", timeout=120)
        self.client = self.bus.client
        self.entries, self.waiting = entries, waiting
        self.client.call("CONFIG", "SET", "appendonly", "no")
        self.client.call("CONFIG", "SET", "slowlog-max-len", 100_000)
        names = [
            path.name.removesuffix(".lua") for path in files("bus.streams").joinpath("scripts").iterdir()
        ]
        self.names = {commands.script(name).sha.encode(): f"{name}.lua" for name in names}
        # As the SLOWLOG shows the text of one that was sent by EVAL: cut.
        self.names |= {commands.script(name).text[:CUT]: f"{name}.lua" for name in names}
        for name in names:
            self.client.call("SCRIPT", "LOAD", commands.script(name).text)
        self.runs: dict[tuple[str, str], list[list[float]]] = {}

    def pipe(self, asked: Iterable[Command]) -> None:
        rest = iter(asked)
        while page := list(islice(rest, 10_000)):
            for reply in self.client.pipe(page):
                if isinstance(reply, Exception):
                    raise reply

    @contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """Note the longest run of each script meanwhile, and of the commands that remove much at once.

        What takes less than SHORT is not logged: logging each command of a script would slow it down.
        """
        self.client.call("CONFIG", "SET", "slowlog-log-slower-than", SHORT)
        self.client.call("SLOWLOG", "RESET")
        yield
        entries = self.client.call("SLOWLOG", "GET", -1)
        self.client.call("CONFIG", "SET", "slowlog-log-slower-than", -1)
        found: dict[str, list[float]] = {}
        for _, _, micros, arguments, *_ in entries:
            command = self.names.get(arguments[1][:CUT]) or arguments[0].decode()
            if command.endswith(".lua") or command in ("XGROUP", "HSCAN", "ZSCAN"):
                found.setdefault(command, []).append(micros / 1000)
        for command, runs in found.items():
            self.runs.setdefault((command, what), []).append(runs)

    # ------------------------------------------------------------------ what there is

    def topic(
        self, partitions: int = 1, ordering: Any = "key", groups: bool = True
    ) -> tuple[str, PartitionKeys]:
        """A topic of its own name, with a group."""
        name = f"t{uuid.uuid4().hex[:8]}"
        self.bus.registry.project([TopicSpec(name=name, partitions=partitions)])
        if groups:
            self.bus.registry.declare_groups([GroupSpec(topic=name, name=GROUP, ordering=ordering)])
        return name, self.bus.keys.partition(name, 0)

    def fill(self, keys: PartitionKeys, count: int, value: bytes = VALUE) -> None:
        self.pipe(("XADD", keys.stream, id_of(n), "v", value, "k", f"k{n % 1000}") for n in range(count))

    def give(self, keys: PartitionKeys, count: int, lane: str = "0") -> None:
        """Have the group given so many."""
        for at in range(0, count, 10_000):
            page = min(10_000, count - at)
            self.client.call("XREADGROUP", "GROUP", GROUP, lane, "COUNT", page, "STREAMS", keys.stream, ">")

    def fail(self, keys: PartitionKeys, numbers: Iterable[int], score: int = 1) -> None:
        """Have these wait for a retry."""
        state = orjson.dumps({"k": "h", "a": 1, "e": "x" * 200})
        for n in numbers:
            self._later.append(("ZADD", keys.retry(GROUP), score, id_of(n)))
            self._later.append(("HSET", keys.state(GROUP), id_of(n), state))
        self.pipe(self._later)
        self._later.clear()

    _later: list[Command] = []

    def hold(self, keys: PartitionKeys, numbers: Iterable[int], hashes: int = 1000) -> None:
        self.pipe(("ZADD", keys.held(GROUP), 0, f"{n % hashes:016x}:{pad_id(id_of(n))}") for n in numbers)

    def lease(self, keys: PartitionKeys, lane: str = "0") -> None:
        self.client.call("SET", keys.lease(GROUP, lane), LEASE)

    def turn(self, keys: PartitionKeys, **outcomes: list[Any]) -> None:
        own = [keys.stream, keys.lease(GROUP, "0"), keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP)]
        own += [keys.dead(GROUP), keys.mark(GROUP)]
        for part in portions(Outcomes(**outcomes)):
            args = [LEASE, GROUP, "0", 0, 100_000, part.dump(), ""]
            while commands.run(self.client, "turn", own, args)[0] == 2:
                pass


# ---------------------------------------------------------------------- what is done


def group_create(bench: Bench) -> None:
    name, keys = bench.topic(groups=False)
    bench.fill(keys, bench.entries)
    with bench.watched("`group create` in the middle of all messages"):
        groups.create(bench.bus, name, GROUP, start=id_of(bench.entries // 100))


def lost_group(bench: Bench) -> None:
    name, keys = bench.topic()
    bench.fill(keys, bench.entries)
    bench.give(keys, 2 * bench.waiting)
    bench.fail(keys, range(bench.waiting))
    bench.hold(keys, range(bench.waiting, 2 * bench.waiting))
    bench.client.call("SET", keys.mark(GROUP), id_of(2 * bench.waiting))
    bench.client.call("XGROUP", "DESTROY", keys.stream, GROUP)
    with bench.watched("a lost group made again, with all that waits"):
        bench.bus.registry.restore_partition(name, 0)
    assert bench.client.call("XPENDING", keys.stream, GROUP)[0] == 2 * bench.waiting
    with bench.watched("`group delete`, all of that pending"):
        groups.delete(bench.bus, name, GROUP)


def advanced(bench: Bench) -> None:
    name, keys = bench.topic()
    bench.fill(keys, bench.entries)
    bench.give(keys, 2 * bench.waiting)
    bench.fail(keys, range(0, bench.waiting, 2))
    with bench.watched("a group moved to its copied mark"):
        place, mark = marks.Place(name, 0, GROUP, ""), id_of(bench.entries - 1000)
        marks.advance_place(bench.bus, place, mark, "key", [keys.lease(GROUP, "0")])
    assert bench.client.call("XPENDING", keys.stream, GROUP)[0] == bench.waiting // 2


def marked(bench: Bench) -> None:
    name, keys = bench.topic(ordering="none")
    bench.fill(keys, bench.waiting)
    bench.give(keys, bench.waiting)
    bench.fail(keys, range(bench.waiting))
    with bench.watched("the mark of an unordered group, all pending waits"):
        marks.note_unordered(bench.bus, bench.bus.registry.groups(name))


def trimmed(bench: Bench) -> None:
    _, keys = bench.topic()
    bench.fill(keys, bench.entries)
    bench.client.call("XGROUP", "SETID", keys.stream, GROUP, "$")
    name = keys.place.partition(":")[0]
    with bench.watched("all messages are trimmed"):
        retention.trim(bench.bus, TopicSpec(name=name, retention=timedelta(milliseconds=1)))
    assert bench.client.call("XLEN", keys.stream) < 2


def turned(bench: Bench) -> None:
    _, keys = bench.topic()
    bench.fill(keys, 60_000)
    bench.give(keys, 60_000)
    bench.lease(keys)
    ids = [id_of(n) for n in range(500)]
    state = orjson.dumps({"k": "h", "a": 1, "e": "x" * 4000}).decode()
    with bench.watched("500 messages fail"):
        bench.turn(keys, retry=[(id, 0, state) for id in ids])
    with bench.watched("500 are held back"):
        bench.turn(keys, held=[(id, pad_id(id), "h") for id in ids])
    with bench.watched("500 are dead"):
        bench.turn(keys, dead=[(id, "x", "x" * 4000, 5, BASE) for id in ids])
    # As many heads as one turn can settle: due.lua brings no more.
    bench.hold(keys, range(1000, 51_000), 200)
    with bench.watched("200 keys are released, 250 messages each"):
        bench.turn(keys, release=[f"{n:016x}" for n in range(200)])


def recovered(bench: Bench) -> None:
    for value, count, what in ((VALUE, bench.waiting, "200 bytes"), (LARGE, 200, "1 MiB")):
        _, keys = bench.topic()
        bench.fill(keys, count, value)
        bench.give(keys, count)
        bench.lease(keys)
        own = [keys.stream, keys.lease(GROUP, "0"), keys.retry(GROUP), keys.held(GROUP), keys.state(GROUP)]
        with bench.watched(f"left-overs of {what}"):
            commands.run(bench.client, "recover", own, [LEASE, GROUP, "0", "-", 500, "key"])
        bench.fail(keys, range(count))
        own.remove(keys.held(GROUP))
        with bench.watched(f"due retries of {what}"):
            commands.run(bench.client, "due", own, [LEASE, GROUP, "0", 500, ""])
        bench.client.call("DEL", keys.stream)


def opened(bench: Bench) -> None:
    _, keys = bench.topic()
    count = bench.waiting // 2
    bench.fill(keys, 2 * count)
    bench.give(keys, 2 * count)
    bench.lease(keys)
    bench.fail(keys, range(count))
    bench.hold(keys, range(count, 2 * count))
    name = keys.place.partition(":")[0]
    lane = Lane(LaneId(name, 0, GROUP), keys, LEASE, "key")
    turns = Turns(bench.bus.endpoint, [lane], held_limit=10_000, dead_limit=10_000)
    with bench.watched("a slice begins where all that waits"):
        turns.open()
    assert lane.retrying >= count  # keys that are held behind nothing are let go
    if link := turns.close():
        link.close()


def redriven(bench: Bench) -> None:
    for value, what in ((VALUE, "200 bytes"), (LARGE, "1 MiB")):
        for kept in (True, False):
            name, keys = bench.topic()
            bench.fill(keys, 100, value)
            bench.give(keys, 100)
            bench.lease(keys)
            for n in range(100):
                bench.turn(keys, dead=[(id_of(n), "x", "x", 5, BASE)])
            if not kept:
                bench.client.call("XTRIM", keys.stream, "MAXLEN", 0)
            letters = [
                LetterRef(Place(0, raw.decode()), "", "")
                for raw, _ in bench.client.call("XRANGE", keys.dead(GROUP), "-", "+")
            ]
            with bench.watched(f"100 dead letters of {what}, {'kept' if kept else 'trimmed'}"):
                fates = deadletters.retry(bench.bus, name, GROUP, letters)
            assert len({fate.name for fate in fates}) == 1
            bench.client.call("DEL", keys.stream, keys.dead(GROUP))


def moved(bench: Bench) -> None:
    for value, count, what in ((VALUE, bench.waiting, "200 bytes"), (LARGE, 100, "1 MiB")):
        name, keys = bench.topic()

        def wait(value: bytes = value, count: int = count, keys: PartitionKeys = keys) -> None:
            body = b"0:,1:v,%d:%b," % (len(value), value)
            self_paced = (
                command
                for n in range(1, count + 1)
                for command in (
                    ("HSET", keys.delayed_body, f"{n:016d}", body), ("ZADD", keys.delayed, 1, f"{n:016d}")
                )
            )  # fmt: skip
            for command in self_paced:
                bench.client.call(*command) if len(value) > 1000 else bench._later.append(command)
            bench.pipe(bench._later)
            bench._later.clear()

        wait()
        with bench.watched(f"delayed messages of {what} are moved"):
            due.move_due(bench.bus)
        bench.client.call("DEL", keys.delayed, keys.delayed_body)
        wait(count=min(count, 1000))
        refs = [DelayedRef(0, n) for n in range(1, min(count, 1000) + 1)]
        with bench.watched(f"delayed messages of {what} are cancelled"):
            delayed.cancel(bench.bus, name, refs)
        bench.client.call("DEL", keys.stream)


def published(bench: Bench) -> None:
    name, keys = bench.topic()
    with bench.watched("500 with message_ids"):
        args = [600, *(part for _ in range(500) for part in (2, "v", VALUE))]
        commands.run(bench.client, "once", [keys.stream, *(keys.once(str(n)) for n in range(500))], args)
    with bench.watched("one delayed"):
        bench.bus.publish(name, 1, delay=60)


def partitioned(bench: Bench) -> None:
    with bench.watched("1,024 partitions with a group"):
        bench.topic(partitions=1024)


SCENES: tuple[Callable[[Bench], None], ...] = (
    group_create, lost_group, advanced, marked, trimmed, turned, recovered, opened, redriven, moved,
    published, partitioned,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--redis7", action="store_true", help="the distribution's redis-server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--waiting", type=int, default=200_000)
    parser.add_argument("--only", choices=[scene.__name__ for scene in SCENES])
    options = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
    django.setup()
    results: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(options.rounds):
        for scene in SCENES:
            if options.only not in (None, scene.__name__):
                continue
            with tempfile.TemporaryDirectory(prefix="jb") as directory:
                binary = "redis-server" if options.redis7 else None
                with EmbeddedServer(Path(directory), **({"binary": binary} if binary else {})) as server:
                    bench = Bench(server, options.entries, options.waiting)
                    began = time.monotonic()
                    scene(bench)
                    print(f"{scene.__name__}: {time.monotonic() - began:.1f} s", flush=True)
                    bench.bus.close()
            for key, rounds in bench.runs.items():
                results.setdefault(key, []).extend(rounds)
    print(
        f"\n{contest.machine()}\n\n| runs | while | times | median ms | longest ms |\n|---|---|---|---|---|"
    )
    for (command, what), rounds in results.items():
        every = [millis for runs in rounds for millis in runs]
        longest = min(map(max, rounds))
        median = statistics.median(every)
        print(f"| `{command}` | {what} | {len(rounds[0]):,} | {median:.1f} | {longest:,.1f} |")


if __name__ == "__main__":
    main()
