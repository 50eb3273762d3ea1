"""What stands in Redis and is not what Jitney writes there: told apart, shown safely, and passed over."""

from __future__ import annotations

from dataclasses import dataclass

#: Characters of foreign data that are shown at most.
SHOWN = 200


def shown(raw: bytes | str, limit: int = SHOWN) -> str:
    """Foreign data for logs, errors and pages: as repr, so that it is one line of visible characters; cut."""
    text = ascii(raw[: limit + 1]) if isinstance(raw, str) else repr(bytes(raw[: limit + 1]))
    return text if len(text) <= limit else f"{text[:limit]}…"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One record that cannot be read."""

    key: str
    """The key in Redis."""
    field: str
    """Which field, member or entry of the key; "" where the key is a string or as a whole of a wrong type."""
    raw: str
    """What stands there, as of `shown`."""
    why: str
    """What is wrong with it, as the end of a sentence: "is not JSON"."""

    def __str__(self) -> str:
        where = f"{shown(self.key)}, field {shown(self.field)}" if self.field else shown(self.key)
        return f"{where}: {self.raw} {self.why}"
