"""Checks whether the declared ordering of each group is in effect."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from bus.doctor.finding import Finding
from bus.observe import GroupPartitionSnapshot, GroupSnapshot, Survey
from bus.values import Ordering

_HINT = (
    "That is as it should be while messages are tried again: `bus pending list` shows them. Nothing new is "
    "given out there meanwhile. A worker must run that serves the group, and the group must not be paused."
)


def examine(survey: Survey) -> Iterator[Finding]:
    """Yield one finding for each group that waits until its declared ordering can take effect."""
    waiting: defaultdict[tuple[GroupSnapshot, Ordering], list[GroupPartitionSnapshot]] = defaultdict(list)
    for group in survey.groups:
        for share in survey.shares[group.topic, group.group]:
            if share.ordering is not None and share.ordering != group.ordering:
                waiting[group, share.ordering].append(share)
    for (group, effect), shares in waiting.items():
        pending = sum(share.pending or 0 for share in shares)
        told = (
            f"Group {group.group} of topic {group.topic} waits for {pending:,} messages in {len(shares):,} "
            f"partitions until its ordering changes from {effect} to {group.ordering}."
        )
        yield Finding("warning", "ordering", told, _HINT)
