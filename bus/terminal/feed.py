"""Publishes a file, line by line, with a progress bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bus.client import Bus
from bus.errors import BusError, InvalidMessage
from bus.format import codec
from bus.terminal.output import many
from bus.terminal.sources import Format, Lines, SourceError, rows

#: JSON may escape what is stored in one byte as six, and may be indented.
LONGEST = 8

#: Messages between two movements of the progress bar.
_STEP = 500


class Feed:
    """The values of a source up to the first bad one, which is kept as `error`.

    The values before a bad line are published whole: it ends the feed instead of breaking it.
    """

    def __init__(
        self, bus: Bus, topic: str, lines: Lines, form: Format, key: str | None, key_field: str | None,
        headers: Mapping[str, str],
    ) -> None:  # fmt: skip
        self._bus = bus
        self._topic = topic
        self._lines = lines
        self._rows = rows(lines, form)
        self._key = key
        self._key_field = key_field
        self._headers = headers
        self.ended = False
        self.error: SourceError | None = None

    def burst(self) -> Iterator[Any]:
        """Yield values until the end, or until the next line would have to be waited for."""
        try:
            for line, value in self._rows:
                self._check(line, value)
                yield value
                if not self._lines.ready:
                    return
        except SourceError as error:
            self.error = error
        self.ended = True

    def key_of(self, value: Any) -> str | None:
        """Return the key of a value that has been checked."""
        if self._key_field is None:
            return self._key
        key = value[self._key_field]
        return key if isinstance(key, str) else orjson.dumps(key).decode()

    def headers_of(self, _value: Any) -> Mapping[str, str]:
        return self._headers

    def _check(self, line: int, value: Any) -> None:
        if self._key_field is not None:
            key = value.get(self._key_field) if isinstance(value, dict) else None
            if key is None or isinstance(key, dict | list):
                raise SourceError(line, f"it has no field {self._key_field!r} that could be a key.")
        try:
            limit = self._bus.settings.max_message_bytes
            codec.encode(self._topic, value, self.key_of(value), self._headers, max_bytes=limit)
        except InvalidMessage as error:
            raise SourceError(line, str(error)) from error


def publish_file(bus: Bus, topic: str, lines: Lines, feed: Feed, name: str) -> int:
    """Publish what a feed gives; return how many messages.

    Raises ClickException with the number of a bad line, or with what Redis refused, and in each case
    says how many messages were published before it.
    """
    published = 0
    try:
        with _progress(lines) as show:
            while not feed.ended:
                for _receipt in bus.publish_iter(
                    topic, feed.burst(), key=feed.key_of, headers=feed.headers_of
                ):
                    published += 1
                    if published % _STEP == 0:
                        show(published)
                show(published)
    except (BusError, KeyboardInterrupt) as error:
        if not published and isinstance(error, BusError):
            raise
        why = str(error) or "Stopped."
        raise click.ClickException(
            f"{why} Published before it, at least: {many(published, 'message')}."
        ) from error
    if feed.error is not None:
        raise click.ClickException(
            f"{name}, line {feed.error.line}: {feed.error} Published before it: {many(published, 'message')}."
        )
    return published


@contextmanager
def _progress(lines: Lines) -> Iterator[Any]:
    """Yield a function that is told how many messages are published; it draws only on a terminal."""
    if not sys.stderr.isatty():
        yield lambda _published: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("publishing", total=lines.size)

        def show(published: int) -> None:
            progress.update(task, completed=lines.position, description=f"{published:,} messages")

        yield show
