"""Reads values to publish from JSON lines or CSV as they come: in bounded memory, with numbered lines."""

from __future__ import annotations

import codecs
import csv
import io
import os
import select
import stat
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import orjson

Format = Literal["jsonl", "csv"]

#: A value and the number of the line on which it begins, from 1.
Row = tuple[int, Any]

#: Bytes of a file that are read at once, and so kept beside what is on its way.
_BLOCK = 256 * 1024


class SourceError(Exception):
    """A line that is no value. `line` is its number, from 1."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


class Lines:
    """The lines of a binary file, without their ends. No line may be longer than `longest` bytes."""

    def __init__(self, file: BinaryIO, longest: int) -> None:
        self._file = file
        self.longest = longest
        self._waiting: deque[bytes] = deque()
        self._rest = b""
        self._ended = False
        self.number = 0
        """Lines given so far."""
        self.position = 0
        """Bytes read so far."""

    @property
    def size(self) -> int | None:
        """Return the bytes of a plain file; None for a pipe."""
        try:
            status = os.fstat(self._file.fileno())
        except io.UnsupportedOperation:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    @property
    def ready(self) -> bool:
        """Return False if the next line would have to be waited for."""
        if self._waiting or self._ended:
            return True
        try:
            return bool(select.select([self._file], [], [], 0)[0])
        except io.UnsupportedOperation:  # bytes in memory
            return True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._waiting:
            if self._ended:
                raise StopIteration
            self._read()
        self.number += 1
        line = self._waiting.popleft()
        if self.number == 1:
            line = _without_mark(line)
        if len(line) > self.longest:
            raise SourceError(self.number, f"the line is longer than {self.longest:,} bytes.")
        return line

    def _read(self) -> None:
        block = self._file.read1(_BLOCK)  # type: ignore[attr-defined]  # a buffered or in-memory file
        self.position += len(block)
        if block:
            *lines, self._rest = (self._rest + block).split(b"\n")
            self._waiting.extend(lines)
            too_long = len(self._rest) > self.longest
        else:
            self._ended = True
            too_long = bool(self._rest)
        if too_long:
            self._waiting.append(self._rest)
            self._rest = b""


def _without_mark(line: bytes) -> bytes:
    """Return the first line without the byte order mark that a spreadsheet or an editor may begin with."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SourceError(1, "this is UTF-16: save the file as UTF-8.")
    return line.removeprefix(codecs.BOM_UTF8)


def rows(lines: Lines, form: Format) -> Iterator[Row]:
    """Yield the values of a file. Raises SourceError at the first line that is wrong."""
    return _csv(lines) if form == "csv" else _jsonl(lines)


def _jsonl(lines: Lines) -> Iterator[Row]:
    for line in lines:
        if not line.strip():
            continue
        try:
            yield lines.number, orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise SourceError(lines.number, f"this is not JSON: {error}.") from error


def _csv(lines: Lines) -> Iterator[Row]:
    csv.field_size_limit(lines.longest)  # of the process; its default of 128 KiB is below that of a message
    reader = csv.reader(_text(lines), strict=True)
    columns: list[str] | None = None
    while True:
        first = lines.number + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise SourceError(first, f"this is not CSV: {error}.") from error
        if cells is None:
            return
        if not cells:
            continue
        if columns is None:
            columns = _columns(cells, first)
        elif len(cells) != len(columns):
            raise SourceError(first, f"{len(cells)} columns, where the first line has {len(columns)}.")
        else:
            yield first, dict(zip(columns, cells, strict=True))


def _columns(cells: list[str], line: int) -> list[str]:
    twice = sorted({cell for cell in cells if cells.count(cell) > 1})
    if twice:
        raise SourceError(line, f"the column {twice[0]!r} is there twice.")
    return cells


def _text(lines: Lines) -> Iterator[str]:
    for line in lines:
        try:
            yield line.decode() + "\n"  # a spreadsheet may end it with CR LF
        except UnicodeDecodeError as error:
            raise SourceError(lines.number, f"this is not UTF-8: {error}.") from error
