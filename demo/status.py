"""What the bus says about the demo, as one line and as figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from bus.observe import BusSnapshot, GroupSnapshot, Lag

#: Every group that must exist before it can be said that all is settled.
GROUPS = ("orders/inventory", "orders/revenue", "page-views/popularity", "stock-alerts/purchasing")


@dataclass(frozen=True, slots=True)
class Status:
    """One look at all topics and groups."""

    taken: datetime
    published: int
    """Messages in all topics, ever."""
    lag: int
    exact: bool
    """False: the lag is at least `lag`, or that of a group is unknown."""
    pending: int
    handled: int
    """Messages settled, summed over the groups."""
    dead: dict[str, int] = field(default_factory=dict)
    """topic/group → dead letters."""
    missing: tuple[str, ...] = ()
    """Groups of the demo that no worker has declared yet."""

    @classmethod
    def of(cls, overview: BusSnapshot) -> Status:
        pairs = [(topic, group) for topic in overview.topics for group in topic.groups]
        groups = {f"{group.topic}/{group.group}": group for _, group in pairs}
        lag = sum(group.lag.count for group in groups.values() if group.lag)
        pending = sum(group.pending or 0 for group in groups.values())
        return cls(
            taken=overview.taken,
            published=sum(topic.published or 0 for topic in overview.topics),
            lag=lag,
            exact=all(_known(group) for group in groups.values()),
            pending=pending,
            handled=sum(topic.published or 0 for topic, _ in pairs) - lag - pending,
            dead={name: group.dead or 0 for name, group in groups.items()},
            missing=tuple(name for name in GROUPS if name not in groups),
        )

    @property
    def settled(self) -> bool:
        """Nothing is waiting and nothing under way, in any group, as far as this one look can tell."""
        return self.exact and not self.missing and self.lag == 0 and self.pending == 0

    def line(self, before: Status | None) -> str:
        """Return a line for the terminal; rates are those since the look `before`."""
        seconds = (self.taken - before.taken).total_seconds() if before else 0
        rates = [
            f"{max(0, now - then) / seconds:7,.0f}/s" if seconds else "      -/s"
            for now, then in (
                (self.published, before.published if before else 0),
                (self.handled, before.handled if before else 0),
            )
        ]
        lag = Lag(self.lag, exact=self.exact).short
        return (
            f"published {rates[0]}   handled {rates[1]}   lag {lag:>6}   "
            f"pending {self.pending:>5,}   dead {sum(self.dead.values()):>4,}"
        )


def _known(group: GroupSnapshot) -> bool:
    return group.lag is not None and group.lag.exact and group.pending is not None
