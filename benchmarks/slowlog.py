"""A bus on a server of its own, whose SLOWLOG says how long each script held it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from itertools import islice
from typing import Any

import orjson

from bus.client import Bus
from bus.consuming.outcomes import Outcomes
from bus.consuming.portions import portions
from bus.format.keys import PartitionKeys, pad_id
from bus.streams import commands
from bus.streams.embedded import EmbeddedServer
from bus.streams.wire import Argument, Command
from bus.topics.registry import GroupSpec
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


def put_first(pid: int) -> bool:
    """Have a server interrupted by nothing else; False where we may not (only root may)."""
    try:
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, PermissionError):
        return False
    return True


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
        folder = files("bus.streams").joinpath("scripts")
        names = [path.name.removesuffix(".lua") for path in folder.iterdir() if path.is_file()]
        self.names = {commands.script(name).sha.encode(): f"{name}.lua" for name in names}
        # As the SLOWLOG shows the text of one that was sent by EVAL: cut.
        self.names |= {commands.script(name).text[:CUT]: f"{name}.lua" for name in names}
        for name in names:
            self.client.call("SCRIPT", "LOAD", commands.script(name).text)
        self.runs: dict[tuple[str, str], list[list[float]]] = {}

    def few(self, count: int) -> int:
        """That many, or fewer where the whole run is small."""
        return max(4, min(count, self.waiting // 100))

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
            args: list[Argument] = [LEASE, GROUP, "0", 0, 100_000, part.dump(), ""]
            while commands.run(self.client, "turn", own, args)[0] == 2:
                pass
