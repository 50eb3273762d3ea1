"""The names of all Redis keys. No other module makes one.

All keys of one partition carry the hash tag `{topic:partition}`, so that one script may touch
them together on a cluster too. Names cannot hold braces or colons (see values.check_name).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

#: What the server calls the type of each key, by the name that it has in Keys and PartitionKeys.
TYPES: Mapping[str, str] = {
    "meta": "hash",
    "topics": "hash",
    "groups": "hash",
    "refused": "hash",
    "workers": "hash",
    "control": "stream",
    "due": "zset",
    "stream": "stream",
    "lease": "string",
    "retry": "zset",
    "held": "zset",
    "state": "hash",
    "mark": "string",
    "dead": "stream",
    "once": "string",
    "ahead": "hash",
    "delayed": "zset",
    "delayed_body": "hash",
}


_LEASE = re.compile(rb"\{([\w.-]+):(\d{1,9})\}:lease:([\w.-]+):([!-9;-~]+)")


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a whole bus, under one prefix."""

    prefix: str

    @property
    def meta(self) -> str:
        """hash: layout version."""
        return f"{self.prefix}:meta"

    @property
    def topics(self) -> str:
        """hash: topic → its spec as JSON."""
        return f"{self.prefix}:topics"

    @property
    def groups(self) -> str:
        """hash: `topic/group` → its declaration as JSON."""
        return f"{self.prefix}:groups"

    @property
    def refused(self) -> str:
        """hash: `topic/group` of a new group that is refused → messages, when (see bus.upkeep.newcomers)."""
        return f"{self.prefix}:refused"

    @property
    def workers(self) -> str:
        """hash: incarnation → the worker's record as JSON, with its beat counter."""
        return f"{self.prefix}:workers"

    @property
    def control(self) -> str:
        """stream: hints that wake every watcher."""
        return f"{self.prefix}:control"

    @property
    def due(self) -> str:
        """zset: `topic:partition` → when its first delayed message is due (server clock, ms), or earlier.

        Written by the scripts that change what waits. With the hash tags of today it lies in another slot
        of a cluster than most partitions; tags that partitions share give each its own part of it.
        """
        return f"{self.prefix}:due"

    def leases(self, topic: str, group: str) -> str:
        """Pattern of the lease keys of a group in all partitions of a topic, for SCAN."""
        return f"{self.prefix}:{{{topic}:*}}:lease:{group}:*"

    @property
    def all_leases(self) -> str:
        """Pattern of all lease keys, for SCAN."""
        return f"{self.prefix}:{{*:*}}:lease:*:*"

    def parse_lease(self, key: bytes) -> tuple[str, int, str, str] | None:
        """Return topic, partition, group and lane of a lease key; None for any other key."""
        parts = _LEASE.fullmatch(key.removeprefix(f"{self.prefix}:".encode()))
        if parts is None or not key.startswith(f"{self.prefix}:".encode()):
            return None
        topic, partition, group, lane = (part.decode() for part in parts.groups())
        return topic, int(partition), group, lane

    def partition(self, topic: str, partition: int) -> PartitionKeys:
        """Return the keys of one partition."""
        return _partition_keys(self.prefix, topic, partition)


@dataclass(frozen=True, slots=True)
class PartitionKeys:
    """The keys of one partition. Methods take the group (and the lane)."""

    stream: str
    """stream: the messages."""
    due: str
    """Keys.due of the bus."""
    due_member: str
    """The partition's name in `due`."""

    def lease(self, group: str, lane: str) -> str:
        """string: `incarnation:token` of the owner, or `free:…` when it was given back."""
        return f"{self.stream}:lease:{group}:{lane}"

    def retry(self, group: str) -> str:
        """zset: pending message id → due time (server clock, ms)."""
        return f"{self.stream}:retry:{group}"

    def held(self, group: str) -> str:
        """zset, scores 0: `<key hash>:<padded id>` of messages that wait behind a failing key."""
        return f"{self.stream}:held:{group}"

    def state(self, group: str) -> str:
        """hash: message id → attempts, key hash and last error; also `era`, `suspect`, counters."""
        return f"{self.stream}:state:{group}"

    def mark(self, group: str) -> str:
        """string: id up to which all is settled, but for ids in retry and held."""
        return f"{self.stream}:mark:{group}"

    def dead(self, group: str) -> str:
        """stream: dead letters."""
        return f"{self.stream}:dead:{group}"

    def once(self, message_id: str) -> str:
        """string with a TTL: the receipt of a message that was published with this id."""
        return f"{self.stream}:once:{message_id}"

    @property
    def delayed(self) -> str:
        """zset: number of a message that is not due yet → due time (server clock, ms)."""
        return f"{self.stream}:delayed"

    @property
    def delayed_body(self) -> str:
        """hash: number → the message, as netstrings; `last` is the last number given."""
        return f"{self.stream}:delayed:body"

    @property
    def ahead(self) -> str:
        """hash: server time → last id then, while ids are ahead of the clock (see bus.upkeep.retention)."""
        return f"{self.stream}:ahead"

    def types(self, group: str, lane: str) -> dict[str, str]:
        """Return the keys that a lane works with, each with its type."""
        return {
            self.stream: TYPES["stream"],
            self.lease(group, lane): TYPES["lease"],
            self.retry(group): TYPES["retry"],
            self.held(group): TYPES["held"],
            self.state(group): TYPES["state"],
            self.mark(group): TYPES["mark"],
            self.dead(group): TYPES["dead"],
        }

    def of_gone_group(self, group: str) -> list[str]:
        """Return mark, retry, held, state, and the lease of lane "0": the keys that ensure.lua needs."""
        waiting = [self.mark(group), self.retry(group), self.held(group), self.state(group)]
        return [*waiting, self.lease(group, "0")]

    def of_group(self, group: str) -> list[str]:
        """Return all keys of one group here but its leases."""
        return [self.retry(group), self.held(group), self.state(group), self.mark(group), self.dead(group)]


@lru_cache(maxsize=65536)
def _partition_keys(prefix: str, topic: str, partition: int) -> PartitionKeys:
    member = f"{topic}:{partition}"
    return PartitionKeys(f"{prefix}:{{{member}}}", Keys(prefix).due, member)


def pad_id(message_id: str) -> str:
    """Return an id with both parts of 20 digits, as many as 64 bits need: then text sorts as ids do."""
    ms, _, seq = message_id.partition("-")
    return f"{ms:0>20}-{seq:0>20}"


def unpad_id(padded: str) -> str:
    """Return the id that `pad_id` padded."""
    ms, _, seq = padded.partition("-")
    return f"{int(ms)}-{int(seq)}"
