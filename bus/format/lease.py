"""The value of a lease, which says who may settle and fetch on a lane.

    <incarnation>:<token>    held; no value is used twice
    free:<what was before>   given back, as unique as what it replaces

Every byte of it is untrusted. Any other value belongs to an owner that is in no table of workers, so it is
taken over as the lease of a dead worker is. As text a value keeps exactly the bytes that were read.
"""

from __future__ import annotations

import re

from bus.safety.unreadable import shown

_FREE = "free:"
_HELD = re.compile(r"([!-~]{1,200}):([!-9;-~]{1,200})")


def read(raw: bytes | None) -> str:
    """Return a value as text; "" for no lease."""
    return raw.decode("utf-8", "surrogateescape") if raw else ""


def raw(value: str) -> bytes:
    """Return the bytes of a value that `read` returned."""
    return value.encode("utf-8", "surrogateescape")


def owner_of(value: str) -> str:
    """Return the incarnation that holds a lease; "" if it is free or missing."""
    if not value or value.startswith(_FREE):
        return ""
    held = _HELD.fullmatch(value)
    return held[1] if held else shown(raw(value))


def is_readable(value: str) -> bool:
    """Return whether a value is one that we write, or none."""
    return not value or value.startswith(_FREE) or _HELD.fullmatch(value) is not None


def freed(value: str) -> str:
    """Return the value of a lease that is given back, as unique as the one that it replaces."""
    return f"{_FREE}{value.replace(':', '-')}"
