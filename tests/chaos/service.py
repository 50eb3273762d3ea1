"""Notes when nobody served a group: what is to come again then comes when somebody serves it again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

Spell = tuple[int, int]
"""Since, until, ns of CLOCK_MONOTONIC."""


class Service:
    """Fed with who serves what, as often as that may change."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._over: dict[str, list[Spell]] = {}

    def look(self, served: Collection[str], groups: Collection[str], now: int) -> None:
        """`served`: groups that a worker serves that is at work now. `groups`: all that there have been."""
        for group in groups:
            if group not in served:
                self._since.setdefault(group, now)
            elif (since := self._since.pop(group, None)) is not None:
                self._over.setdefault(group, []).append((since, now))

    def unserved(self, now: int) -> dict[str, list[Spell]]:
        """Group → when nobody served it, in order. A group that was always served is not in it."""
        groups = self._over.keys() | self._since.keys()
        still = {group: [(since, now)] for group, since in self._since.items()}
        return {group: self._over.get(group, []) + still.get(group, []) for group in groups}


def idle(unserved: Mapping[str, Sequence[Spell]], group: str, since: int, until: int) -> int:
    """For how much of this time nobody served the group. ns."""
    spells = unserved.get(group, ())
    return sum(max(0, min(until, ends) - max(since, begins)) for begins, ends in spells)
