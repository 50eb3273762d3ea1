"""One group in one partition: what a survey has read of it so far. It decides the lag."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from bus.format.lane_id import LaneId
from bus.moments import moment
from bus.observe import lag as lags
from bus.observe.facts import GroupFacts, StreamFacts
from bus.observe.loss import LastLoss
from bus.observe.snapshots import GroupPartitionSnapshot
from bus.sums import Lag
from bus.topics.registry import GroupSpec
from bus.values import Ordering, id_pair


@dataclass(slots=True)
class Share:
    """What a survey has learned so far of one group in one partition."""

    group: GroupSpec
    ordering: Ordering
    """The one in effect here."""
    partition: int
    key: str
    stream: StreamFacts | None
    facts: GroupFacts | None
    retrying: int | None
    held: int | None
    dead: int | None
    trimmed: int | None
    lost: int | None = 0
    lost_maybe: int | None = 0
    lost_last: LastLoss | None = None
    dead_dropped: int | None = 0
    """Dead letters that DEAD_LIMIT has pushed out."""
    owners: list[str] = field(default_factory=list)
    """The incarnation of each lease held here."""
    lease: Any = None
    """The reply to GET of the lease of the home of the partition."""
    holder: str | None = None
    """The incarnation that holds the home of the partition, whatever the ordering."""
    unheld: bool = False
    lag: Lag | None = None
    oldest: str | None = None
    """Id of the first message not given yet."""

    @property
    def lane(self) -> LaneId:
        """The home of the partition."""
        return LaneId(self.group.topic, self.partition, self.group.name)

    def prove(self, *, keeps_lag: bool) -> bool:
        """Set the lag if it needs no counting; return whether the oldest message must still be asked for."""
        stream, facts = self.stream, self.facts
        if stream is None or facts is None:
            return False
        count = lags.proven(stream, facts, keeps_lag=keeps_lag)
        self.lag = None if count is None else Lag(count)
        if count == 0 or stream.first_id is None:
            return False
        if id_pair(facts.position) < id_pair(stream.first_id):
            self.oldest = stream.first_id
            return False
        return True

    def lag_count(self) -> lags.LagCount:
        """Return what counts the messages that come after the position. Only where `prove` has said True."""
        assert self.stream is not None
        assert self.facts is not None
        assert self.stream.last_id is not None
        return lags.LagCount(self.key, self.facts.position, self.stream.last_id)

    def snapshot(self, now: datetime) -> GroupPartitionSnapshot:
        end = self.stream.added if self.stream else None
        return GroupPartitionSnapshot(
            topic=self.group.topic,
            partition=self.partition,
            group=self.group.name,
            missing=self.facts is None,
            position=self.facts.position if self.facts else None,
            offset=self._offset(),
            end=end,
            lag=self.lag,
            pending=self.facts.pending if self.facts else None,
            retrying=self.retrying,
            held=self.held,
            dead=self.dead,
            trimmed=self.trimmed,
            lost=self.lost,
            lost_maybe=self.lost_maybe,
            lost_last=self.lost_last,
            owner=self.owners[0] if self.owners and self.ordering != "none" else None,
            time_lag=self._time_lag(now),
            lanes=len(self.owners),
            ordering=self.ordering,
            unheld=self.unheld,
        )

    def _offset(self) -> int | None:
        if self.stream is None or self.lag is None or not self.lag.exact:
            return None
        return self.stream.added - self.lag.count

    def _time_lag(self, now: datetime) -> timedelta | None:
        if self.lag is None:
            return None
        if self.oldest is None:
            return timedelta(0)
        stored = moment(id_pair(self.oldest)[0])
        return max(timedelta(0), now - stored)
