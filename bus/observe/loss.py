"""What is kept of the messages that a group has lost, see bus.losses."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import orjson


@dataclass(frozen=True, slots=True)
class LastLoss:
    """The losses that were found last, of one group in one partition."""

    count: int
    after: str
    """They came after the message with this id …"""
    before: str
    """… and not after this one."""
    found: datetime
    """When they were found, by the server's clock."""

    @classmethod
    def load(cls, raw: bytes | None) -> LastLoss | None:
        """From field `lost_last` of the state; None if there is none, or what is there is not ours."""
        try:
            known = orjson.loads(raw or b"null")
            found = datetime.fromtimestamp(known["at"] / 1000, UTC)
            return cls(int(known["n"]), str(known["after"]), str(known["before"]), found)
        except (ValueError, TypeError, KeyError, OverflowError, OSError):
            return None
