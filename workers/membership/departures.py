"""Gives up lanes: after the running slice, and not before the outcomes of all that it ended are settled."""

from __future__ import annotations

from bus.errors import BusUnavailable
from bus.format.lane_id import ORDERED_LANE, LaneId
from workers.membership.leases import Leases
from workers.scheduling.scheduler import Scheduler


class Departures:
    """The lanes that one worker gives up. For the thread that keeps its leases. Raises BusUnavailable."""

    def __init__(self, leases: Leases, scheduler: Scheduler) -> None:
        self._leases = leases
        self._scheduler = scheduler
        self._leaving: set[LaneId] = set()
        """The lanes that leave when their slices end."""

    def give_up(self, assigned: set[LaneId]) -> None:
        """Give up the ordered lanes that are not in `assigned`, the homes that should be ours.

        While the main loop stands still, or the worker stops: also those whose end nobody hears of.
        """
        standing = self._scheduler.standing
        if standing or self._scheduler.stopped:
            self._scheduler.give_up_unheard()
        unwanted = self._scheduler.owned().keys() - assigned
        unwanted = {lane for lane in unwanted if lane.lane == ORDERED_LANE or standing}
        for lane in self._leaving - unwanted:
            self._scheduler.stay(lane)
        self._leaving = {lane for lane in unwanted if not self._scheduler.leave(lane)}
        self.give_back()

    def give_back(self) -> None:
        """Free the lanes that are given up. While Redis is away they stay ours until the next look."""
        lanes = self._scheduler.given_up()
        try:
            self._leases.give_back(lanes)
        except BusUnavailable:
            raise  # the next look does it
        except Exception:
            self._scheduler.given_back(lanes)  # or what is wrong with one would keep all of them for ever
            raise
        self._scheduler.given_back(lanes)
