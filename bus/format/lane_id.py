"""Which lane: names that everybody who speaks of lanes shares."""

from __future__ import annotations

from typing import NamedTuple

#: The consumer name of the one lane of a partition in ordered groups, whoever owns it.
ORDERED_LANE = "0"


class LaneId(NamedTuple):
    """Which lane: a partition of a topic, for a group. A tuple: workers look up thousands all the time."""

    topic: str
    partition: int
    group: str
    lane: str = ORDERED_LANE
