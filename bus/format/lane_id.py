"""The id of a lane: topic, partition, group and consumer name."""

from __future__ import annotations

from typing import NamedTuple

#: The consumer name of the one lane of a partition in ordered groups, whoever owns it.
ORDERED_LANE = "0"


class LaneId(NamedTuple):
    """The id of a lane. It is a tuple because workers look up thousands all the time."""

    topic: str
    partition: int
    group: str
    lane: str = ORDERED_LANE
