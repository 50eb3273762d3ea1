"""The kinds of commands, and the types of arguments that they share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import click

from bus.cli.session import Session
from bus.durations import parse_duration
from bus.errors import ConfigurationError
from bus.operating import filters
from bus.operating.deadletters import Origin
from bus.operating.delayed import DelayedRef
from bus.values import MAX_PARTITIONS, Position, check_name


class Leaf(click.Command):
    """A command that knows --json."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--json"], is_flag=True, expose_value=False, callback=_use_json, help="Answer in JSON."
            )
        )


class Branch(click.Group):
    """A command with sub-commands."""

    command_class = Leaf
    group_class = type  # sub-groups are branches too


def _use_json(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    session = context.find_object(Session)
    if session is not None:
        session.json = wanted


def _checked(name: str, check: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make a type of argument of one of the bus's own checks; what it refuses is wrong usage."""

    def convert(text: str) -> Any:
        try:
            return check(text)
        except ConfigurationError as error:
            raise click.BadParameter(str(error)) from error

    convert.__name__ = name  # what --help shows
    return convert


def _retention(text: str) -> timedelta | None:
    return None if text == "forever" else parse_duration(text)


def _start(text: str) -> str:
    Position.parse(text)
    return text


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigurationError(f"{text!r} is not a header: write name=value.")
    return name, value


def _at(text: str) -> datetime:
    """Parse an ISO time. It must have a zone: it is a moment to act, so none is guessed."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is not a time, such as 2030-01-31T12:00+01:00.") from None
    if moment.tzinfo is None:
        raise ConfigurationError(f"{text!r} has no time zone: write it, such as {moment.isoformat()}+00:00.")
    return moment


def of_group(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the arguments TOPIC and GROUP."""
    return click.argument("topic", type=TOPIC)(click.argument("group", type=GROUP)(command))


TOPIC = _checked("topic", lambda text: check_name("Topic", text))
GROUP = _checked("group", lambda text: check_name("Group", text))
DURATION = _checked("duration", parse_duration)
RETENTION = _checked("duration", _retention)
START = _checked("position", _start)
HEADER = _checked("name=value", _header)
SINCE = _checked("since", filters.since)
AT = _checked("time", _at)
PARTITION = _checked("partition", filters.partition)
REASON = _checked("text", filters.reason)
LETTER = _checked("id", Origin.parse)
DELAYED = _checked("id", DelayedRef.parse)
PARTITIONS = click.IntRange(1, MAX_PARTITIONS)
