"""Netstrings (`5:hello,2:hi,`): the fields of a message that is not in its stream yet.

Redis has them for delayed messages (`delay.lua` writes them, `move.lua` reads them), and the database for the
outbox.
"""

from __future__ import annotations

from collections.abc import Iterable


def pack(parts: Iterable[bytes]) -> bytes:
    """Return the parts as netstrings, one after the other."""
    return b"".join(b"%d:%b," % (len(part), part) for part in parts)


def unpack(packed: bytes) -> list[bytes]:
    """Return the parts that `pack` wrote. Raises ValueError for anything else."""
    parts, at = [], 0
    while at < len(packed):
        size, colon, _ = packed[at : at + 20].partition(b":")
        begins = at + len(size) + 1
        ends = begins + int(size) if colon and size.isdigit() else -1
        if ends < 0 or packed[ends : ends + 1] != b",":
            raise ValueError(f"no netstring at byte {at}")
        parts.append(packed[begins:ends])
        at = ends + 1
    return parts
