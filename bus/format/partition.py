"""The partition of a key, the same in every language, and the key hash, which ties messages together.

partition = CRC-32 (the one of zlib, PNG and Ethernet: polynomial 0xEDB88320, initial value and
final xor 0xFFFFFFFF) of the key's UTF-8 bytes, modulo the partition count. The CRC-32 of `"A1"` is
0xF9656C81, so with 8 partitions it belongs to partition 1.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from zlib import crc32

from bus.values import Ordering

#: The CRC-32 of a key's bytes. It is zlib's own function: one more call for each message would show.
checksum = crc32


def partition_of(key: str | bytes, partitions: int) -> int:
    """Return the partition of a key, from 0. It stays the same while the topic has so many partitions."""
    return checksum(key.encode() if isinstance(key, str) else key) % partitions


def key_hash(ordering: Ordering, key: bytes | None) -> str:
    """Return what ties messages together in order; "" ties to nothing. Scripts compute it in key_hash.lua."""
    if ordering == "none":
        return ""
    if ordering == "partition":
        return "*"
    return "" if key is None else _digest(key)


@lru_cache(maxsize=10_000)
def _digest(key: bytes) -> str:
    return hashlib.sha1(key, usedforsecurity=False).hexdigest()[:16]
