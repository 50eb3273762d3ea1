"""The record of the messages that a group has lost, as bus.upkeep.losses keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from bus.moments import utc_words
from bus.values import known_id


def loss_words(surely: int, maybe: int) -> str:
    """Return in words how many messages were lost: "5"; "2 to 5" or "up to 5" where only a limit is known."""
    most = f"{surely + maybe:,}"
    if not maybe:
        return most
    return f"{surely:,} to {most}" if surely else f"up to {most}"


@dataclass(frozen=True, slots=True)
class LastLoss:
    """The losses that were found last, of one group in one partition."""

    count: int
    """How many at most."""
    maybe: int
    """So many of them are no more than a limit; all of them where an older version has not said."""
    after: str
    """They came after the message with this id …"""
    before: str
    """… and not after this one."""
    found: datetime
    """When they were found, by the server's clock."""

    @classmethod
    def load(cls, raw: bytes | None) -> LastLoss | None:
        """Read field `lost_last` of the state; None if there is none, or what is there is not ours."""
        try:
            record = orjson.loads(raw or b"null")
            found = datetime.fromtimestamp(record["at"] / 1000, UTC)
            count = int(record["n"])
            maybe = min(count, max(0, int(record.get("maybe", count))))
            after, before = known_id(record["after"]), known_id(record["before"])
        except (ValueError, TypeError, KeyError, OverflowError, OSError):
            return None
        return cls(count, maybe, after, before, found) if after and before else None

    @property
    def words(self) -> str:
        """How many they were."""
        return loss_words(self.count - self.maybe, self.maybe)

    @property
    def told(self) -> str:
        """How many, between which ids, and when that was found."""
        found = utc_words(self.found)
        return f"{self.words} after {self.after} and up to {self.before}, found {found} UTC"
