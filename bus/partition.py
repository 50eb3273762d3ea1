"""Key → partition, the same in every language.

partition = CRC-32 (the one of zlib, PNG and Ethernet: polynomial 0xEDB88320, initial value and
final xor 0xFFFFFFFF) of the key's UTF-8 bytes, modulo the partition count. The CRC-32 of `"A1"` is
0xF9656C81, so with 8 partitions it belongs to partition 1.
"""

from __future__ import annotations

from zlib import crc32


def partition_of(key: str, partitions: int) -> int:
    """The partition, from 0, that a key belongs to while the count stays `partitions`."""
    return crc32(key.encode()) % partitions
