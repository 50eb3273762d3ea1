"""Divides the homes among the workers, and says which are ours and which nobody holds.

It is computed from what every worker sees, so all come to the same result; and again only if that has
changed.
"""

from __future__ import annotations

from typing import Any

from bus.format.lane_id import ORDERED_LANE, LaneId
from workers.membership.assignment import assign
from workers.membership.homes import View
from workers.membership.roster import Roster


class Division:
    """The last division that this worker has computed. Not thread-safe."""

    def __init__(self, me: str, roster: Roster) -> None:
        self._me = me
        self._roster = roster
        self._basis: tuple[Any, ...] | None = None
        self.assigned: set[LaneId] = set()
        """The homes that should be ours."""
        self.leased: set[LaneId] = set()
        """The homes whose leases bear our name."""
        self.unheld: list[LaneId] = []
        """The homes that some worker serves and no worker holds."""

    def update(self, view: View) -> None:
        """Divide anew, if anything has changed since the last look."""
        groups = [(group.topic, group.name) for group in view.tables.groups]
        serving, declining = self._roster.serving(groups), self._roster.declining()
        basis = (serving, declining, self._roster.gone)
        if self._basis is not None and self._basis[0] is view and self._basis[1:] == basis:
            return
        assigned = assign(serving, view.homes, view.owners, declining)
        self.assigned = {lane for lane, worker in assigned.items() if worker == self._me}
        ours = {lane for lane, owner in view.owners.items() if owner == self._me}
        self.leased = {lane for lane in ours if lane.lane == ORDERED_LANE}
        self.unheld = [lane for lane in assigned if not self._roster.may_hold(view.owners.get(lane, ""))]
        self._basis = (view, *basis)
