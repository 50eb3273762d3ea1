"""Read-only snapshots for the admin and the CLI alike: topics, partitions, groups, lag, pending, workers.

None always means "unknown" and is shown as unknown; it is never 0. All functions take a `Bus`, write
nothing, and raise BusUnavailable if Redis cannot be reached. How many round trips they take does not
depend on how much there is to see; survey.py says how that is done, lag.py how lag is kept exact.
"""

from __future__ import annotations

from bus.client import Bus
from bus.errors import UnknownGroup
from bus.observe import summary
from bus.observe import survey as surveys
from bus.observe.facts import ask, partition_snapshot, stream_command, stream_facts
from bus.observe.info import Info
from bus.observe.messages import latest, message, tail
from bus.observe.snapshots import (
    GroupPartitionSnapshot,
    GroupSnapshot,
    Lag,
    Overview,
    PartitionSnapshot,
    ServerSnapshot,
    TopicSnapshot,
    WorkerSnapshot,
)

__all__ = [
    # functions
    "group",
    "groups",
    "latest",
    "message",
    "overview",
    "partitions",
    "server",
    "tail",
    "topic",
    "topics",
    "workers",
    # values
    "GroupPartitionSnapshot",
    "GroupSnapshot",
    "Lag",
    "Overview",
    "PartitionSnapshot",
    "ServerSnapshot",
    "TopicSnapshot",
    "WorkerSnapshot",
]


def overview(bus: Bus) -> Overview:
    """The server, all topics with their groups, and all workers, from one look."""
    survey = surveys.take(bus)
    return Overview(
        server=survey.info.snapshot(bus.endpoint.safe_url),
        topics=tuple(summary.topics(survey)),
        workers=survey.workers,
        taken=survey.now,
        unreadable=survey.unreadable,
    )


def topics(bus: Bus) -> list[TopicSnapshot]:
    """All topics, by name."""
    return summary.topics(surveys.take(bus))


def topic(bus: Bus, name: str) -> TopicSnapshot:
    """One topic. Raises UnknownTopic."""
    return summary.topics(surveys.take(bus, name))[0]


def partitions(bus: Bus, name: str) -> list[PartitionSnapshot]:
    """The partitions of a topic, in order. Raises UnknownTopic."""
    spec = surveys.spec_of(bus, name)
    streams = [bus.keys.partition(name, number).stream for number in range(spec.partitions)]
    replies = ask(bus.client, [stream_command(stream) for stream in streams])
    return [partition_snapshot(name, number, stream_facts(reply)) for number, reply in enumerate(replies)]


def groups(bus: Bus, topic: str | None = None) -> list[GroupSnapshot]:
    """The groups of one topic or of all. Raises UnknownTopic."""
    return summary.groups(surveys.take(bus, topic))


def group(bus: Bus, topic: str, group: str) -> tuple[GroupSnapshot, list[GroupPartitionSnapshot]]:
    """One group, and its partitions in order. Raises UnknownTopic or UnknownGroup."""
    survey = surveys.take(bus, topic, group)
    if (topic, group) not in survey.shares:
        raise UnknownGroup(topic, group)
    return summary.groups(survey)[0], survey.shares[topic, group]


def workers(bus: Bus, topic: str | None = None, group: str | None = None) -> list[WorkerSnapshot]:
    """The table of workers, with the leases that each holds: in all, or of one topic or group.

    Raises UnknownTopic.
    """
    return list(surveys.take(bus, topic, group).workers)


def server(bus: Bus) -> ServerSnapshot:
    """The server behind the bus."""
    (reply,) = bus.client.pipe([("INFO",)])
    return Info.of(reply).snapshot(bus.endpoint.safe_url)
