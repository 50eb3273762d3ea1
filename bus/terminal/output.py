"""Writes answers: a table for people, JSON for programs. Errors and remarks go to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
import orjson

from bus import durations
from bus.moments import BEYOND, BEYOND_WORDS, utc_words
from bus.safety.unreadable import visible, visible_json

if TYPE_CHECKING:
    from bus.observe import Lag

UNKNOWN = "unknown"

#: After a plan that was only shown.
NOT_APPLIED = "Nothing is done yet: add --apply to do it."


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text. Titles in `numbers` are columns that are aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[str] = frozenset()


def answer(as_json: bool, data: Any, *tables: Table | str) -> None:
    """Write the answer to stdout: `data` as JSON, or the tables and sentences."""
    if as_json:
        click.echo(dump(data, indent=True))
        return
    for part in tables:
        if isinstance(part, str):
            click.echo(printable(part))
        else:
            _write_table(part)


def dump(data: Any, *, indent: bool = False) -> str:
    """Return JSON of dataclasses, times (ISO) and durations (seconds); what would not be seen is escaped."""
    option = orjson.OPT_INDENT_2 if indent else 0
    return visible_json(orjson.dumps(data, default=_default, option=option).decode())


def remark(text: str) -> None:
    """Tell something beside the answer; does nothing for an empty text."""
    if text:
        click.echo(printable(text), err=True)


@contextmanager
def bar(total: int, verb: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many are dealt with; it draws a progress bar, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(verb, total=total)
        yield lambda done: progress.update(task, completed=done)


def printable(text: str) -> str:
    """Return the text; what could steer a terminal or mislead its reader is written as escapes."""
    return visible(text)


# ---------------------------------------------------------------------- words


def count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def many(number: int, noun: str) -> str:
    """Return a number with its noun: `1 message`, `2,000 messages`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def lag_words(lag: Lag | None) -> str:
    return UNKNOWN if lag is None else lag.short


def duration_words(duration: timedelta | None, none: str = UNKNOWN) -> str:
    return none if duration is None else durations.words(duration)


def ago_words(moment: datetime | None, none: str = UNKNOWN) -> str:
    """Return how long ago it was, `12m 5s ago`, by the clock of this machine."""
    if moment is None:
        return none
    if moment >= BEYOND:
        return BEYOND_WORDS
    return f"{duration_words(max(timedelta(0), datetime.now(UTC) - moment))} ago"


def time_words(moment: datetime | None, none: str = UNKNOWN) -> str:
    return none if moment is None else utc_words(moment)


# ---------------------------------------------------------------------- tables


def _write_table(table: Table) -> None:
    rows = [[printable(cell) for cell in row] for row in table.rows]
    if sys.stdout.isatty():
        _write_rich(table, rows)
    else:
        _write_plain(table, rows)


def _write_rich(table: Table, rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    for title in table.columns:
        drawn.add_column(title, justify="right" if title in table.numbers else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console = Console()
    # What does not fit is left to the terminal to wrap: a cut id or name is of no use.
    console.width = max(console.width, sum(_widths(table, rows)) + 3 * len(table.columns))
    console.print(drawn)


def _write_plain(table: Table, rows: Sequence[Sequence[str]]) -> None:
    """Write aligned columns of full width, for files and pipes."""
    widths = _widths(table, rows)
    for row in [table.columns, *rows]:
        cells = (
            cell.rjust(width) if title in table.numbers else cell.ljust(width)
            for title, cell, width in zip(table.columns, row, widths, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def _widths(table: Table, rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(table.columns, *rows, strict=True)]


def _default(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
