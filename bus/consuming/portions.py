"""Outcomes of many failing messages, cut so that no script that settles them takes the server long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bus.consuming.outcomes import Outcomes

#: Failures, each with the end of a traceback, that one script settles: a few milliseconds for the server.
PORTION = 100


def portions(outcomes: Outcomes) -> Iterator[Outcomes]:
    """The same in several, mostly one, to be settled in this order.

    What only records something goes ahead. The last releases what waited behind others, and so comes when
    all that it waited for is settled.
    """
    kind = type(outcomes)
    last = {}
    for name in ("dead", "retry", "noted"):
        items = getattr(outcomes, name)
        last[name] = items
        if len(items) > PORTION:
            last[name] = []
            for at in range(0, len(items), PORTION):
                yield kind(**{name: items[at : at + PORTION]})
    yield replace(outcomes, **last)
