"""Foreign data: what stands in Redis and is not what Jitney writes there.

It is shown safely, and passed over.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from bus.safety.complaints import Complaints
from bus.safety.visible import SHOWN, escaped, shown, visible, visible_json

__all__ = ["SHOWN", "Unreadable", "escaped", "shown", "tell", "visible", "visible_json"]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One record that cannot be read."""

    key: str
    """The key in Redis."""
    field: str
    """The field, member or entry of the key; "" if the key is a string, or as a whole of a wrong type."""
    raw: str
    """What stands there, as `shown` returns it."""
    why: str
    """What is wrong with it, as the end of a sentence: "is not JSON"."""

    newer: bool = False
    """True if it may be of a newer version: then it is not overwritten."""

    def __str__(self) -> str:
        return f"{self.where}: {self.raw} {self.why}"

    @property
    def where(self) -> str:
        """Return the key, and the field if there is one, without what stands there."""
        return f"{shown(self.key)}, field {shown(self.field)}" if self.field else shown(self.key)


def tell(record: Unreadable) -> None:
    """Log an unreadable record, once a minute for each key."""
    _complaints.say(record.key, "Redis holds what cannot be read, and it is passed over: %s.", record)


_complaints = Complaints(logging.getLogger("bus.unreadable"))
