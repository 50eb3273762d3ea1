"""Counts messages of a partition, and goes along it, in portions: none of them holds the server for long."""

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


def seek(client: Client, stream: str, start: str, steps: int) -> str:
    """Return the id of the message that is so many after an id, or, where `steps` is negative, before it.

    Back from an id that no message has, the first step leads to the last message before it. "0-0" where the
    partition begins earlier; the last message where it ends earlier. Raises BusUnavailable.
    """
    at, way = start, "forward" if steps >= 0 else "back"
    # Back from an id means from the message itself on, if there is one: it is passed over first.
    left = steps if steps >= 0 else 1 - steps
    while left:
        args: list[Argument] = [at, way, min(left, PORTION), PORTION_BYTES]
        passed, last, ended = commands.run(client, "seek", [stream], args)
        left -= passed
        at = commands.text(last) if passed else at
        if ended and left:
            return at if steps >= 0 else "0-0"
        if left and steps < 0:
            at = before(at)
    return at


def before(id: str) -> str:
    """Return the greatest id before this one; "0-0" has none, and stays."""
    ms, _, seq = id.partition("-")
    if int(seq):
        return f"{ms}-{int(seq) - 1}"
    return f"{int(ms) - 1}-{2**64 - 1}" if int(ms) else "0-0"
