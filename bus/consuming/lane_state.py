"""The state of a lane while no slice runs. The main process hands it to the next slice."""

from __future__ import annotations

from typing import NamedTuple

from bus.format.lane_id import LaneId
from bus.values import Ordering


class LaneState(NamedTuple):
    """What is known of a lane whose lease is ours.

    The main process keeps it and hands it to a slice (`workers.order`). The slice makes a `Lane` of it. What
    the slice reports makes the next state. A tuple, since it is pickled with every slice.
    """

    id: LaneId
    lease: str
    """The value of the lease under which the lane is worked on."""
    ordering: Ordering
    """The one in effect."""
    last_id: str | None = None
    """The last id that the group was given here; None: it must be asked for."""
    seen: str | None = None
    """The greatest position of the group that was ever known. A server that says less has lost data."""
    history: int = 0
    """The history of the server in which the last slice left it (see bus.streams.history)."""
    recover: bool = True
    """True: there are, or may be, left-overs in the pending list."""
    closed: bool = False
    """True: fetch nothing new. Another ordering is declared, and waits until nothing is pending."""
    drain_only: bool = False
    """True: settle what is pending, fetch nothing else. An orphaned lane of an unordered group."""

    def at_rest(self, position: str) -> LaneState:
        """Return the state where nothing is left to do and the group was given all up to this id."""
        return self._replace(last_id=position, seen=position, recover=False)

    def worked_on(self, last_id: str, history: int, *, recover: bool) -> LaneState:
        """Return the state after a slice: the group was given all up to this id, in this history."""
        return self._replace(last_id=last_id, seen=last_id, history=history, recover=recover)

    def unsure(self, *, recover: bool) -> LaneState:
        """Return the state where nobody knows how far the group is: the next slice asks the server."""
        return self._replace(last_id=None, recover=recover)

    def made_again(self, *, recover: bool) -> LaneState:
        """Return the state where the stream or the group is gone. What is made again may begin anywhere."""
        return self._replace(last_id=None, seen=None, recover=recover)

    def with_leftovers(self) -> LaneState:
        """Return the state after the death of the process that worked here: left-overs are looked for."""
        return self._replace(recover=True)

    def leased(self, lease: str) -> LaneState:
        """Return the state under a new lease. What was fetched under the old one is left over."""
        return self._replace(lease=lease, recover=True)
