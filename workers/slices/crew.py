"""Runs the `async def` handlers of one slice, many at once."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from bus.consuming.lane import Lane
from bus.errors import BusUnavailable
from bus.safety.complaints import Complaints
from bus.values import Message, id_pair
from workers.slices.chains import Chains
from workers.slices.dispatch import Dispatcher, Failed

logger = logging.getLogger("jitney.workers")
complaints = Complaints(logger)


class Hand(Protocol):
    """The part of a slice that a crew needs (see workers.slices.handling)."""

    handled: bool

    def dispatcher(self, lane: Lane) -> Dispatcher: ...
    def may_go_on(self, lane: Lane) -> bool: ...
    def held_back(self, lane: Lane, message: Message) -> bool: ...
    def is_used_up(self, lane: Lane, message: Message) -> bool: ...
    def settle_or_raise(self) -> None: ...
    def show_running(self, lane: Lane, first: str, last: str, since: float) -> None: ...
    def show_finished(self, lane: Lane, message: Message, *, others: bool) -> None: ...
    def fail(self, lane: Lane, message: Message, failed: Failed, *, others: bool) -> None: ...


class Crew:
    """Handlers that run at once, as one slot of shared memory shows them: like a batch that is in hand.

    If the process dies, all that ran are suspects, and are then handled one by one. A hard time limit counts
    from the beginning of the one that has run for longest.
    """

    def __init__(self, hand: Hand, lane: Lane) -> None:
        self._hand = hand
        self._lane = lane
        self._since: dict[str, float] = {}
        self.ended = 0
        self.busy = 0.0
        """Seconds that handlers took, added up."""
        self.broken = False
        """True if Redis cannot be reached. The loop must not stand still for that: other handlers would seem
        slow.
        """

    async def work(self, chains: Chains) -> bool:
        """Run the chains; False if some messages were not started."""
        went_on = await chains.run(self._hand.dispatcher(self._lane).handle_async, self)
        # Asynchronous queries have a thread of their own, which Celery does not care for.
        await sync_to_async(close_old_connections)()
        return went_on

    def may_begin(self) -> bool:
        if self.broken or self._cannot_settle():
            return False
        return self._hand.may_go_on(self._lane)

    def _cannot_settle(self) -> bool:
        """Settle what is due; True, and handlers are let end, if Redis cannot be reached."""
        try:
            self._hand.settle_or_raise()
        except BusUnavailable as error:
            complaints.trouble(error, "Handlers that run are let end; then Redis is waited for: %s", error)
            self.broken = True
        return self.broken

    def begin(self, message: Message) -> bool:
        if self._hand.held_back(self._lane, message) or self._hand.is_used_up(self._lane, message):
            return False
        self._since[message.id] = time.monotonic()
        self._show()
        self._hand.handled = True
        return True

    def end(self, message: Message, failed: Failed | None) -> None:
        self.busy += time.monotonic() - self._since[message.id]
        self.ended += 1
        others = len(self._since) > 1
        if failed is None:
            self._lane.done(message)
            self._hand.show_finished(self._lane, message, others=others)
        else:
            self._hand.fail(self._lane, message, failed, others=others)
        # Not before: what breaks the slice while it is told of has run.
        del self._since[message.id]
        self._show()

    def tick(self) -> None:
        if not self.broken:
            self._cannot_settle()
        self._show()  # settling forgets what was finished, and what runs

    def _show(self) -> None:
        if self._since:
            ids = sorted(self._since, key=id_pair)
            self._hand.show_running(self._lane, ids[0], ids[-1], min(self._since.values()))
