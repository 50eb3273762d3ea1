"""Where the records of a producer come from: a CSV file, or the generator."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.orders import COLUMNS, key_of


@dataclass(frozen=True, slots=True)
class Record:
    """One message to publish."""

    topic: str
    key: str | None
    value: Mapping[str, Any]


class BadFile(ValueError):
    """This file cannot be published; the text says why."""


def check_file(path: Path) -> None:
    """Raise BadFile unless this is a CSV file with the columns of order lines, in any order."""
    try:
        rows = _rows(path)
        header = next(rows, [])
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror}") from error
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise BadFile(
            f"{path} has no column {', '.join(missing)} in its first line; needed: {','.join(COLUMNS)}."
        )


def file_records(path: Path) -> Iterator[Record]:
    """Yield the records of a CSV file, in order, malformed ones included: they are for consumers to judge.

    A record that is too short lacks its last columns; one that is longer than the header has the rest in
    `more`. Columns that order lines do not have are left out.
    """
    rows = _rows(path)
    header = next(rows)
    places = {name: header.index(name) for name in COLUMNS}
    for row in rows:
        value: dict[str, Any] = {name: row[place] for name, place in places.items() if place < len(row)}
        if len(row) > len(header):
            value["more"] = row[len(header) :]
        yield Record("orders", key_of(value), value)


def _rows(path: Path) -> Iterator[list[str]]:
    # Nobody's file is too odd to be published: a broken byte or a huge field makes a malformed line.
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        for row in csv.reader(file):
            if row:
                yield row
