"""The snapshots: frozen values that pages and command line show.

None always means "unknown" and is shown as unknown; it is never 0. A sum over partitions covers those
that exist (their absence is shown beside it) and is None if none does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from bus.observe.loss import LastLoss
from bus.safety.unreadable import Unreadable
from bus.sums import Lag
from bus.values import Ordering


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSnapshot:
    """One partition of a topic."""

    topic: str
    partition: int
    missing: bool
    """True if Redis has no stream here (then all numbers are None)."""
    length: int | None
    first_id: str | None
    """Id of the oldest message still kept; None if there is none."""
    last_id: str | None
    """Id of the newest message ever stored, trimmed or not; None before the first."""
    first_offset: int | None
    """Offset of the oldest message still kept."""
    next_offset: int | None
    """Offset that the next message will get."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPartitionSnapshot:
    """One group in one partition."""

    topic: str
    partition: int
    group: str
    missing: bool
    """True if Redis has no such group here; then position, offset, lag and pending are None."""
    position: str | None
    """Id of the last message given to the group."""
    offset: int | None
    """Offset of the next message to be given."""
    end: int | None
    """Next offset of the partition."""
    lag: Lag | None
    pending: int | None
    """Given, not settled (retrying and held included)."""
    retrying: int | None
    held: int | None
    dead: int | None
    trimmed: int | None
    """Messages that were given, and removed by somebody before they were settled."""
    owner: str | None
    """Incarnation that holds the lane's lease (ordered groups); None if free or unordered."""
    time_lag: timedelta | None = None
    """Age of the oldest message not given yet; zero if there is none; None if unknown."""
    lanes: int = 0
    """Leases held here now (unordered groups have one lane per pool slot)."""
    lost: int | None = 0
    """Messages that somebody removed before they were given."""
    lost_maybe: int | None = 0
    """How many more at most: the group had read on before anybody looked."""
    lost_last: LastLoss | None = None
    ordering: Ordering | None = None
    """The ordering in effect here: not the declared one where messages must be settled first."""
    unheld: bool = False
    """Nobody has held this lane for 10 s or more, though a worker serves the group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSnapshot:
    """One group of one topic, summed over its partitions."""

    topic: str
    group: str
    ordering: Ordering
    """The declared one."""
    paused: bool
    lag: Lag | None
    pending: int | None
    retrying: int | None
    held: int | None
    dead: int | None
    time_lag: timedelta | None
    """Age of the oldest message not given yet; zero if there is none; None if unknown."""
    workers: int
    """Workers in the table that serve this group; whether they live shows in their beats."""
    lanes: int = 0
    """Leases held now, over all partitions."""
    trimmed: int | None = None
    """Messages that were given, and removed by somebody before they were settled."""
    lost: int | None = 0
    """Messages that somebody removed before they were given."""
    lost_maybe: int | None = 0
    """How many more at most."""
    lost_lately: bool = False
    """Some of them were found within the last day."""
    lost_last: LastLoss | None = None
    """Those that were found last, over all partitions …"""
    lost_last_partition: int | None = None
    """… and the partition that they were in."""
    missing_partitions: int = 0
    """Partitions in which Redis has no such group."""
    unheld_partitions: int = 0
    """Partitions that nobody has held for 10 s or more, though a worker serves the group."""
    former_ordering: Ordering | None = None
    """Another ordering that is still in effect somewhere, until what is pending there is settled."""
    unsettled: int = 0
    """Messages that must be settled before the declared ordering is in effect everywhere."""

    @property
    def name(self) -> str:
        """The name of the group."""
        return self.group

    @property
    def reordering(self) -> str:
        """What the group waits for until its declared ordering is in effect, as a sentence; "" if it is."""
        if self.former_ordering is None:
            return ""
        return (
            f"Waits for {self.unsettled:,} messages until its ordering changes from {self.former_ordering} "
            f"to {self.ordering}; nothing new is given out there."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSnapshot:
    """One topic, summed over its partitions."""

    name: str
    partitions: int
    retention: timedelta | None
    messages: int | None
    """Messages kept now."""
    published: int | None
    """Messages ever published (the sum of the next offsets)."""
    missing_partitions: int
    last_published: datetime | None
    groups: tuple[GroupSnapshot, ...]
    delayed: int | None = 0
    """Messages that wait until they are due; they are not in the topic yet."""
    next_due: datetime | None = None
    """When the first of them is due, by the server's clock; None if none waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSnapshot:
    """One worker in the table of workers."""

    incarnation: str
    host: str
    pid: int
    started: datetime
    beat: int
    """Goes up every few seconds while the worker lives, so one look cannot tell: compare two."""
    groups: tuple[str, ...] | None
    """Groups it serves; None: all."""
    processes: int
    lanes: int
    """Leases it holds now."""
    serves: tuple[str, ...] | None = None
    """What it serves, as `topic/group`; None: not said, so it goes by `groups`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSnapshot:
    """The server behind the bus."""

    url: str
    kind: str
    """"Redis" or "Valkey"."""
    version: str
    used_memory: int | None
    max_memory: int | None
    """Bytes; 0 = no limit."""
    uptime: timedelta | None
    refusal: str = ""
    """Why the rest is unknown: the server's answer where INFO is forbidden."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSnapshot:
    """The whole bus: its server, its topics with their groups, and its workers."""

    server: ServerSnapshot
    topics: tuple[TopicSnapshot, ...]
    workers: tuple[WorkerSnapshot, ...]
    taken: datetime
    """When, by the server's clock."""
    unreadable: tuple[Unreadable, ...] = ()
    """Records of topics and groups that cannot be read; what they are of is missing above."""
