"""Counts messages of a partition in portions, so that no script holds the server for long."""

from __future__ import annotations

from bus.streams import commands
from bus.streams.connect import Client
from bus.streams.wire import Argument

#: Messages, and about how many bytes of them, that one script counts: about a millisecond.
PORTION = 1_000
PORTION_BYTES = 256 * 1024


def count(client: Client, stream: str, after: str, up_to: str) -> int:
    """Return how many messages come after one id, up to another and with it. Raises BusUnavailable."""
    counted = 0
    while after:
        args: list[Argument] = [after, up_to, PORTION, PORTION_BYTES]
        more, last = commands.run(client, "count", [stream], args)
        counted, after = counted + more, commands.text(last)
    return counted
