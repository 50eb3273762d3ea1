"""The protocol between code that reads replies and code that sends commands.

It is a generator: it yields an `Ask`, is sent the replies, and returns what it has made of them. So what a
reply means can be read, and tested, without a connection. `bus.consuming.turn` sends and receives.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from bus.streams.wire import Command

T = TypeVar("T")


class Ask(NamedTuple):
    """Commands to be sent in one write."""

    commands: Sequence[Command]
    most_bytes: float | None = None
    """The most bytes that the replies may have together; None: as many as they have, and nobody counts them.
    """


#: Something that yields what it asks, is sent the replies, and returns a T.
Steps = Generator[Ask, list[Any], T]


def run(steps: Steps[T], send: Callable[[Ask], list[Any]]) -> T:
    """Run steps to their end. `send`: sends what is asked, and returns the replies."""
    try:
        ask = next(steps)
        while True:
            ask = steps.send(send(ask))
    except StopIteration as end:
        returned: T = end.value
        return returned
