"""Read-only snapshots for pages and command line alike: topics, partitions, groups, lag, pending, workers.

None always means "unknown" and is shown as unknown; it is never 0. All functions take a `Bus`, write
nothing, and raise BusUnavailable if Redis cannot be reached. How many round trips they take does not
depend on how much there is to see: see reading.py, and lag.py for how lag is kept exact.

Each function takes a survey of its own. Whoever shows more than one thing takes one by `take_survey`, and
makes all from it, so that the numbers are of one moment.
"""

from __future__ import annotations

from bus.client import Bus
from bus.observe.info import Info
from bus.observe.messages import latest, message, tail
from bus.observe.reading import spec_of, take_survey
from bus.observe.snapshots import (
    BusSnapshot,
    GroupPartitionSnapshot,
    GroupSnapshot,
    PartitionSnapshot,
    ServerSnapshot,
    TopicSnapshot,
    WorkerSnapshot,
)
from bus.observe.survey import Survey
from bus.sums import Lag

__all__ = [
    # functions
    "group",
    "groups",
    "latest",
    "message",
    "overview",
    "partitions",
    "server",
    "spec_of",
    "tail",
    "take_survey",
    "topic",
    "topics",
    "workers",
    # values
    "BusSnapshot",
    "GroupPartitionSnapshot",
    "GroupSnapshot",
    "Lag",
    "PartitionSnapshot",
    "ServerSnapshot",
    "Survey",
    "TopicSnapshot",
    "WorkerSnapshot",
]


def overview(bus: Bus) -> BusSnapshot:
    """Return the server, all topics with their groups, and all workers."""
    return take_survey(bus).snapshot()


def topics(bus: Bus) -> list[TopicSnapshot]:
    """Return all topics, by name."""
    return list(take_survey(bus).topics)


def topic(bus: Bus, name: str) -> TopicSnapshot:
    """Return one topic. Raises UnknownTopic."""
    return take_survey(bus, name).topics[0]


def partitions(bus: Bus, name: str) -> list[PartitionSnapshot]:
    """Return the partitions of a topic, in order. Raises UnknownTopic."""
    return take_survey(bus, name).partitions(name)


def groups(bus: Bus, topic: str | None = None) -> list[GroupSnapshot]:
    """Return the groups of one topic or of all. Raises UnknownTopic."""
    return list(take_survey(bus, topic).groups)


def group(bus: Bus, topic: str, group: str) -> tuple[GroupSnapshot, list[GroupPartitionSnapshot]]:
    """Return one group, and its partitions in order. Raises UnknownTopic or UnknownGroup."""
    snapshot, shares = take_survey(bus, topic, group).group(topic, group)
    return snapshot, list(shares)


def workers(bus: Bus, topic: str | None = None, group: str | None = None) -> list[WorkerSnapshot]:
    """Return the workers, with the leases that each holds: in all, or of one topic or group.

    Raises UnknownTopic.
    """
    return list(take_survey(bus, topic, group).workers)


def server(bus: Bus) -> ServerSnapshot:
    """Return the server behind the bus."""
    (reply,) = bus.client.pipe([("INFO",)])
    return Info.of(reply).snapshot(bus.endpoint.safe_url)
