"""Cuts outcomes of many messages, so that no script that settles them takes the server long."""

from __future__ import annotations

from collections.abc import Iterator

from bus.consuming.outcomes import Outcomes

#: Outcomes that one script settles: about a millisecond for the server, two where all come with a traceback.
PORTION = 100

#: The order in which turn.lua settles them. What is released comes last: what it waited for is settled then.
_ORDER = ("dead", "retry", "noted", "held", "done", "trimmed", "clear", "release")


def portions(outcomes: Outcomes) -> Iterator[Outcomes]:
    """Cut outcomes into portions, mostly one, to be settled in this order."""
    kind = type(outcomes)
    part, room = kind(), PORTION
    for name in _ORDER:
        items, at = getattr(outcomes, name), 0
        while at < len(items):
            if not room:
                yield part
                part, room = kind(), PORTION
            some = items[at : at + room]
            setattr(part, name, some)
            at, room = at + len(some), room - len(some)
    yield part
