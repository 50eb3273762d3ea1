"""The releases of the shop's code, between which a rolling deploy goes to and fro.

All groups of a topic see all its messages. Between the releases a handler is added and removed (newcomer),
one has another name and another form (crates), one becomes a batch (booked), and most change their ordering.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bus.values import Ordering
from tests.chaos.ledger import Call
from workers.slices.chains import CONCURRENCY

Form = Literal["single", "batch", "async", "atomic", "atomic batch"]


@dataclass(frozen=True, slots=True)
class Serving:
    """One handler of a release."""

    topic: str
    group: str
    ordering: Ordering
    form: Form


#: Messages in one call of a batch handler.
BATCH = 20

OLD, NEW = "old", "new"

RELEASES: dict[str, tuple[Serving, ...]] = {
    OLD: (
        Serving("keyed", "bykey", "key", "single"),
        Serving("keyed", "crates", "partition", "batch"),
        Serving("keyed", "booked", "key", "atomic"),
        Serving("keyed", "waiters", "none", "async"),
        Serving("loose", "anyhow", "none", "single"),
    ),
    NEW: (
        Serving("keyed", "bykey", "partition", "single"),
        Serving("keyed", "crates", "key", "single"),
        Serving("keyed", "booked", "key", "atomic batch"),
        Serving("keyed", "waiters", "key", "async"),
        Serving("loose", "anyhow", "key", "single"),
        Serving("loose", "newcomer", "key", "single"),
    ),
}

#: Groups whose effect in the database must be there exactly once.
ONCE = "booked"

#: Workers are of different kinds: what each serves, of what its release has. An empty one serves all.
ROLES: tuple[tuple[str, ...], ...] = ((), ("bykey", "booked", "newcomer"), ("crates", "waiters", "anyhow"))


def other(release: str) -> str:
    return NEW if release == OLD else OLD


def groups(releases: Iterable[str]) -> dict[str, str]:
    """Group → its topic, of all these releases."""
    return {serving.group: serving.topic for release in releases for serving in RELEASES[release]}


def ordered() -> frozenset[str]:
    """Groups in which keys must stay in order, whatever release is at work."""
    ways: dict[str, set[Ordering]] = {}
    for release in RELEASES.values():
        for serving in release:
            ways.setdefault(serving.group, set()).add(serving.ordering)
    return frozenset(group for group, orderings in ways.items() if "none" not in orderings)


def calls(release: str) -> dict[str, Call]:
    """Group → how its handler of this release is called."""
    ways = {"batch": Call(BATCH, ends_together=True), "atomic batch": Call(BATCH, ends_together=True),
            "async": Call(CONCURRENCY)}  # fmt: skip
    return {serving.group: ways.get(serving.form, Call()) for serving in RELEASES[release]}


def served(role: tuple[str, ...], release: str) -> list[str]:
    """The groups that a worker of this role serves; empty for all of them."""
    return [serving.group for serving in RELEASES[release] if serving.group in role]
