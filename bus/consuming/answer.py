"""Reads the replies to one turn: updates the lanes, and says which commands must be sent again.

Something is asked again where the server did not know a script, where large messages made a script stop half
way, where a lane has a key that holds something foreign, and where memory is full: Redis before 7.4 then
refuses every MULTI, so scripts do its work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bus.consuming import calls, opening
from bus.consuming.asked import Asked
from bus.consuming.blame import blamed, raise_first_error
from bus.consuming.lane import Lane
from bus.consuming.outcomes import Outcomes
from bus.consuming.sizes import MOST_BYTES
from bus.consuming.steps import Ask, Steps
from bus.errors import ServerError
from bus.format.state import Failure
from bus.streams.commands import is_noscript, text
from bus.streams.wire import Command
from bus.values import Message, id_pair

#: The messages that a turn has brought, by lane.
Delivery = list[tuple[Lane, list[Message]]]

#: The first part of the reply of turn.lua where large messages made it stop: it is to be sent again.
UNFINISHED = 2


class Answer:
    """The meaning of the replies to one turn."""

    __slots__ = ("_asked", "_late", "_released", "delivery", "leases", "memory_full", "refused")

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._released: dict[Lane, list[Any]] = {}
        """What the first portions have released."""
        self._late: set[Lane] = set()
        """Lanes whose outcomes were settled only after the replies of this turn had come."""
        self.delivery: Delivery = []
        self.leases: Any = None
        """The reply to the read of the leases (see bus.consuming.fence); None where they were not read."""
        self.refused = False
        """True if the server has executed nothing of what stood in the MULTI, nor a script instead."""
        self.memory_full = False
        """True if memory is full, so that marks cannot be written."""

    def settle_first_portions(self) -> Steps[None]:
        """Settle what is more than one portion, each portion in its own write: the server serves others in
        between.

        If the connection breaks, all of it is sent once more. That changes nothing that is settled.
        """
        for lane, part in self._asked.first_portions:
            if not lane.lost:
                (reply,) = yield Ask([self._settle(lane, part)])
                reply = yield from self._completed(
                    lane, reply, partial(self._settle, lane, part, by_text=True)
                )
                if not lane.lost:
                    self._released.setdefault(lane, []).extend(reply[2])
        self._late.clear()  # nothing else of this turn has been sent yet

    def read(self, replies: Sequence[Any]) -> Steps[None]:
        """Take in the replies to the commands of the turn."""
        asked, rest = self._asked, iter(replies)
        for lane, part in asked.last_portions:
            again = partial(self._settle, lane, part, asked.marks.get(lane, ""), by_text=True)
            reply = yield from self._completed(lane, next(rest), again)
            if not lane.lost:
                lane.learn_settled([*self._released.get(lane, ()), *reply[2]], *reply[3:])
        if asked.has_multi:
            size = len(asked.acking) + len(asked.marks) + bool(asked.reading)
            queued = [next(rest) for _ in range(1 + size)]
            executed, _, self.leases = next(rest), next(rest), next(rest)
            if isinstance(executed, list):
                if [reply for reply in executed if isinstance(reply, ServerError)]:
                    yield from self._partly_executed(executed)
                self._executed(executed)
            else:
                yield from self._not_executed(queued, executed)
        for lane in asked.recovering:
            again = partial(calls.recover, lane, asked.most_waiting, by_text=True)
            reply = next(rest)
            if lane in self._late:
                (reply,) = yield Ask([again()])
            reply = yield from self._completed(lane, reply, again)
            if not lane.lost:
                self._recovered(lane, *reply[1:])
        for lane in asked.due:
            again = partial(calls.due, lane, asked.most_waiting, by_text=True)
            reply = next(rest)
            # What due.lua gives to a lane of an unordered group, it gives once: it is not asked again there.
            if lane in self._late and lane.ordering != "none":
                (reply,) = yield Ask([again()])
            reply = yield from self._completed(lane, reply, again)
            if not lane.lost:
                self._came_due(lane, *reply[1:])

    def _settle(self, lane: Lane, part: Outcomes, mark: str = "", *, by_text: bool = False) -> Command:
        # A mark comes with the last portion only: what is still to be settled must not lie below it.
        return calls.settle(lane, part.dump(), self._asked.dead_limit, mark=mark, by_text=by_text)

    def _completed(self, lane: Lane, reply: Any, again: Callable[[], Command]) -> Steps[Any]:
        """Return the reply of a script, asked again if need be; None, and the lane is lost, if a key of it
        holds foreign data.

        `again`: makes the command, with the text of the script.
        """
        if is_noscript(reply):
            self._late.add(lane)
            (reply,) = yield Ask([again()])
        while not (yield from blamed([lane], reply)):
            raise_first_error([reply])
            if reply[0] != UNFINISHED:
                if reply[0] == 0:
                    lane.lose()
                return reply
            self._late.add(lane)
            (reply,) = yield Ask([again()])
        return None

    def _not_executed(self, queued: Sequence[Any], executed: ServerError | None) -> Steps[None]:
        """Take in that the server has executed nothing of the MULTI. `queued`: the replies before EXEC's."""
        asked = self._asked
        if executed is None:
            self.refused = True
            for lane in asked.lanes:
                lane.next_due = 0  # a lease still ours was touched by redrive.lua: look what is due
            yield from opening.read_eras(asked.lanes)  # … or by ensure.lua
            return
        errors = [reply for reply in queued if isinstance(reply, ServerError)]
        if not any(error.code == "OOM" for error in errors):
            raise_first_error([*errors, executed])
        self.memory_full = True
        if asked.marking:
            self.refused = True  # for the SET: without it newer servers take the rest
        else:
            yield from self.settle_by_script()

    def _partly_executed(self, executed: list[Any]) -> Steps[None]:
        """Leave out the lanes whose commands the server has refused: their replies become None."""
        asked = self._asked
        for number, reply in enumerate(executed):
            if not isinstance(reply, ServerError):
                continue
            lanes = asked.acking[number : number + 1]
            if asked.reading and number == len(executed) - 1:
                lanes = asked.reading
            if not (lanes and (yield from blamed(lanes, reply))):
                raise_first_error([reply])
            executed[number] = None

    def _executed(self, executed: list[Any]) -> None:
        """Take in the replies to the commands of the MULTI."""
        asked = self._asked
        for lane, acked in zip(asked.acking, executed, strict=False):
            if acked is not None:
                lane.acks = []
        for lane, mark in asked.marks.items():
            lane.marked = mark
        if asked.reading and executed[-1] is not None:
            self._fetched({bytes(stream): entries for stream, entries in executed[-1]})

    def _fetched(self, streams: dict[bytes, list[Any]]) -> None:
        for lane in self._asked.reading:
            entries = streams.get(lane.keys.stream.encode())
            if entries:
                self.delivery.append((lane, lane.fetched(entries)))

    def settle_by_script(self) -> Steps[None]:
        """Settle and fetch by scripts, for what stood in the MULTI: Redis before 7.4 refuses that when memory
        is full.
        """
        asked = self._asked
        for lane in asked.lanes:
            fetch = asked.most_new if lane in asked.reading else 0
            if not (lane.acks or fetch):
                continue
            mark, outcomes = asked.marks.get(lane, ""), lane.outcomes.dump(lane.acks)
            command = calls.settle(lane, outcomes, asked.dead_limit, mark=mark, fetch=fetch, by_text=True)
            (reply,) = yield Ask([command], MOST_BYTES if fetch > 1 else math.inf)
            if (yield from blamed([lane], reply)):
                continue
            raise_first_error([reply])
            if reply[0] == 0:
                lane.lose()
                continue
            lane.acks = []
            if not lane.lost:
                lane.learn_settled(*reply[2:])
            if reply[1]:
                self.delivery.append((lane, lane.fetched(reply[1])))

    def _recovered(self, lane: Lane, entries: Sequence[Any], position: bytes) -> None:
        lane.position = text(position)
        self.delivery.append((lane, lane.messages(entries)))

    def _came_due(
        self, lane: Lane, entries: Sequence[Any], states: Sequence[Any], trimmed: Sequence[Any], next_due: int
    ) -> None:
        key = lane.keys.state(lane.id.group)
        for entry, state in zip(entries, states, strict=True):
            lane.failures[text(entry[0])] = Failure.load(state, key, text(entry[0]))
        for message_id, state in trimmed:
            lane.failures.setdefault(text(message_id), Failure.load(state, key, text(message_id)))
            lane.drop_trimmed(text(message_id))
        lane.next_due = next_due if next_due >= 0 else None
        messages = lane.messages(entries)
        messages.sort(key=lambda message: id_pair(message.id))
        self.delivery.append((lane, messages))
