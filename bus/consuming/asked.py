"""One turn's request as a value: which lanes settle, which fetch, how much.

`bus.consuming.question` makes it, and the commands; `bus.consuming.answer` reads the replies. Neither half
knows the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bus.consuming.lane import Lane
from bus.consuming.outcomes import Outcomes

#: Outcomes of a lane, as much as one script settles.
Portion = tuple[Lane, Outcomes]


class Asked(NamedTuple):
    """What one turn asks, lane by lane. A lane fetches in one way at most."""

    lanes: Sequence[Lane]
    """All lanes of the turn: the fence is around them all."""
    first_portions: Sequence[Portion]
    """Outcomes that are settled before, each portion in a write of its own."""
    last_portions: Sequence[Portion]
    """Outcomes that are settled with this turn: the last portion of each lane, mostly the only one."""
    acking: Sequence[Lane]
    """Lanes with something done."""
    marks: dict[Lane, str]
    """The marks to be written."""
    marking: bool
    """Whether marks may be written: not while memory is full."""
    reading: Sequence[Lane]
    """Lanes that fetch new messages."""
    recovering: Sequence[Lane]
    """Lanes that fetch left-overs."""
    due: Sequence[Lane]
    """Lanes that fetch retries that are due."""
    most_new: int
    """New messages for each lane, at most."""
    most_waiting: int
    """Left-overs or retries for each lane, at most."""
    dead_limit: int
    """Dead letters that a group keeps."""
    most_bytes: float
    """The most bytes that the replies may have together."""
    has_multi: bool
    """Whether there is a MULTI among the commands."""
