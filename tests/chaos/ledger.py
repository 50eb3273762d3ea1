"""Ledgers outside Redis: append-only files, one line for each thing that happened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Published(NamedTuple):
    """A message that is certainly stored, once, at this place."""

    topic: str
    partition: int
    id: str
    """The id of its stream entry."""
    name: str
    """Its unique name, chosen by the publisher."""
    key: str
    seq: int
    """Its number among the messages of its key."""
    at: int
    """When that was known, ns of CLOCK_MONOTONIC (as are all times here)."""


class Handling(NamedTuple):
    """A handler began ("start"), returned ("end") or raised ("fail")."""

    what: str
    group: str
    topic: str
    partition: int
    id: str
    name: str
    key: str
    seq: int
    attempt: int
    worker: str
    pid: int
    at: int


class Call(NamedTuple):
    """How a worker calls the handler of a group."""

    most: int = 1
    """So many messages it has in hand at once, at most."""
    ends_together: bool = False
    """It is one call for all of them: it writes that they ended when it has begun with the last."""


class Ledger:
    """Appends lines. O_APPEND makes a short write of several processes atomic; nothing is buffered, so
    that a line which was written survives the death of its writer."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, entry: Published | Handling) -> None:
        os.write(self._file, (" ".join(map(str, entry)) + "\n").encode())

    def close(self) -> None:
        os.close(self._file)


def read_published(path: Path) -> list[Published]:
    return [
        Published(topic, int(partition), id, name, key, int(seq), int(at))
        for topic, partition, id, name, key, seq, at in _lines(path)
    ]


def read_handled(path: Path) -> list[Handling]:
    """In the order of their times."""
    entries = [
        Handling(
            what,
            group,
            topic,
            int(partition),
            id,
            name,
            key,
            int(seq),
            int(attempt),
            worker,
            int(pid),
            int(at),
        )
        for what, group, topic, partition, id, name, key, seq, attempt, worker, pid, at in _lines(path)
    ]
    return sorted(entries, key=lambda entry: entry.at)


def _lines(path: Path) -> Iterator[list[str]]:
    """Those that are there whole: while somebody writes, the last may not be yet."""
    if path.exists():
        for line in path.read_text().split("\n")[:-1]:
            yield line.split(" ")
