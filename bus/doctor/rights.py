"""Finds out what the Redis user of this bus may not do. No question changes anything."""

from __future__ import annotations

from collections.abc import Iterator

from bus.client import Bus
from bus.doctor.finding import Finding
from bus.streams.connect import is_forbidden
from bus.streams.wire import Command

#: What to ask, and what does not work without it. Those of the first group are for looking alone.
_LOOKING: tuple[tuple[Command, str], ...] = (
    (("TIME",), "ages are by the clock of this machine; retries and delayed messages do not work"),
    (("XINFO", "STREAM", "{stream}"), "partitions, lag and offsets are unknown"),
    (("XPENDING", "{stream}", "doctor"), "what is pending is unknown"),
)
_WORKING: tuple[tuple[Command, str], ...] = (
    (("CLIENT", "ID"), "workers look for news four times a second instead of being woken"),
    (("CLIENT", "UNBLOCK", 0), "workers look for news four times a second instead of being woken"),
    (("SCAN", 0, "COUNT", 1), "topics and groups cannot be deleted"),
)
HINT = "The rules that each role needs are in docs/security.md."


def examine(bus: Bus) -> Iterator[Finding]:
    """Yield one finding for each forbidden command, or one that says that none is. Raises BusUnavailable."""
    stream = bus.keys.partition("doctor", 0).stream
    asked = _LOOKING if bus.settings.read_only else (*_LOOKING, *_WORKING)
    commands = [[stream if word == "{stream}" else word for word in command] for command, _ in asked]
    refused = False
    for (command, missing), reply in zip(asked, bus.client.pipe(commands), strict=True):
        if is_forbidden(reply):
            refused = True
            yield Finding("warning", "rights", f"{_name(command)} is forbidden: {missing} ({reply}).", HINT)
    if not refused:
        yield Finding("ok", "rights", "The Redis user may do what it is asked for.")


def _name(command: Command) -> str:
    return " ".join(str(word) for word in command[:2] if str(word).isupper())
