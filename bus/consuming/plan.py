"""What one turn asks of the server, and what its replies mean.

    MULTI · XACK … · SET marks · XREADGROUP · EXEC · WATCH leases · MGET leases        in one write

Outcomes other than "done" go through `turn.lua` before that, left-overs and due retries come through
`recover.lua` and `due.lua` after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bus.consuming.blame import blame
from bus.consuming.lane import Lane
from bus.consuming.outcomes import Outcomes
from bus.consuming.portions import portions
from bus.consuming.sizes import MOST_BYTES
from bus.errors import BusError, ServerError
from bus.format.state import Failure
from bus.streams.commands import Script, is_nogroup, is_noscript, is_of_one_partition, script, text
from bus.streams.connect import error_of
from bus.streams.wire import Command, pack_all
from bus.values import Message, id_pair

if TYPE_CHECKING:
    from bus.consuming.turn import Turns

#: Left-overs looked at in one turn.
PAGE = 500

#: The first part of the reply of turn.lua where large messages made it stop: it is to be sent again.
UNFINISHED = 2

Batch = list[tuple[Lane, list[Message]]]


class GroupLost(BusError):
    """Raised when a stream or its group has vanished under a running slice. It must be made again."""


class Plan:
    """The commands of one turn, and how to read their replies."""

    def __init__(self, turns: Turns, count: int) -> None:
        self._turns = turns
        self._lanes = list(turns.lanes)
        now = turns.server_now()
        if count:
            for lane in self._lanes:
                if lane.recovering and not lane.position:
                    lane.recovered()  # the last page of left-overs has been handled
        marks = {lane: lane.new_mark() for lane in self._lanes} if count and turns.marking else {}
        self._marks = {lane: mark for lane, mark in marks.items() if mark is not None}
        parts = [(lane, [*portions(lane.outcomes)]) for lane in self._lanes if lane.outcomes]
        self._settling = [(lane, each[-1]) for lane, each in parts]
        self._early = [(lane, part) for lane, each in parts for part in each[:-1]]
        self._released: dict[Lane, list[Any]] = {}
        """What the early portions have released."""
        self._late: set[Lane] = set()
        """Lanes whose outcomes were settled only after the replies of this turn had come."""
        self._acking = [lane for lane in self._lanes if lane.acks]
        fetching = [] if count == 0 else turns.sizes.some(self._lanes)
        self._recovering = [lane for lane in fetching if lane.recovering]
        flowing = [] if turns.drain_only else [lane for lane in fetching if not lane.recovering]
        self._due = [lane for lane in flowing if lane.next_due is not None and lane.next_due <= now]
        self._reading = [
            lane for lane in flowing if lane not in self._due and lane.may_fetch(turns.held_limit)
        ]
        self._count = max(1, count // max(1, len(fetching)))
        self._page = min(PAGE, max(1, count))
        many = len(self._reading) * self._count > 1  # one must come whole, or it would never come
        self.limit = MOST_BYTES if many and self._reading else math.inf
        commands = self._commands()
        self.replies = len(commands)
        self.packed = pack_all(commands)

    def _commands(self) -> list[Command]:
        commands = [self._script("turn", lane, part) for lane, part in self._settling]
        self._multi = bool(self._acking or self._reading)
        if self._multi:
            commands.append(("MULTI",))
            commands += [("XACK", lane.keys.stream, lane.id.group, *lane.acks) for lane in self._acking]
            commands += [("SET", lane.keys.mark(lane.id.group), mark) for lane, mark in self._marks.items()]
            if self._reading:
                commands.append(self._read())
            commands.append(("EXEC",))
            commands += [self._turns.watch(), self._turns.mget()]
        commands += [self._script("recover", lane) for lane in self._recovering]
        commands += [self._script("due", lane) for lane in self._due]
        return commands

    def _read(self) -> Command:
        lane = self._reading[0].id
        streams = [each.keys.stream for each in self._reading]
        return ("XREADGROUP", "GROUP", lane.group, lane.lane, "COUNT", self._count, "STREAMS",
                *streams, *([">"] * len(streams)))  # fmt: skip

    def _script(
        self,
        name: str,
        lane: Lane,
        outcomes: Outcomes | None = None,
        *,
        by_text: bool = False,
        fetch: int = 0,
        acks: bool = False,
    ) -> Command:
        keys, group = lane.keys, lane.id.group
        own = [keys.stream, keys.lease(group, lane.id.lane), keys.retry(group)]
        base: list[Any] = [lane.lease, group, lane.id.lane]
        if name == "turn":
            own += [keys.held(group), keys.state(group), keys.dead(group), keys.mark(group)]
            done = lane.acks if acks else ()
            # What is still to be settled must not lie below a mark.
            early = any(part is outcomes for _, part in self._early)
            mark = "" if early else self._marks.get(lane, "")
            settled = (outcomes or lane.outcomes).dump(done)
            base += [fetch, self._turns.dead_limit, settled, mark]
        elif name == "recover":
            own += [keys.held(group), keys.state(group)]
            base += [lane.position, 1 if lane.suspect else self._page, lane.ordering]
        else:
            own += [keys.state(group)]
            base += [1 if lane.suspect else self._page, "1" if lane.ordering == "none" else "0"]
        wanted: Script = script(name)
        return wanted.by_text(own, base) if by_text else wanted.by_sha(own, base)

    # ------------------------------------------------------------------ replies

    def settle_early(self) -> None:
        """Settle what is more than one portion, each portion in its own write: the server serves others in
        between.

        If the connection breaks, all of it is sent once more. That changes nothing that is settled.
        """
        for lane, part in self._early:
            if not lane.lost:
                reply = self._turns.need_link().call(*self._script("turn", lane, part))
                reply = self._once_more("turn", lane, reply, part)
                if not lane.lost:
                    self._released.setdefault(lane, []).extend(reply[2])
        self._late.clear()  # nothing else of this turn has been sent yet

    def take_in(self, replies: list[Any]) -> Batch | None:
        """Take in the replies and return the batch; None if the turn must be tried again."""
        rest = iter(replies)
        for lane, part in self._settling:
            reply = self._once_more("turn", lane, next(rest), part)
            if not lane.lost:
                lane.settled([*self._released.get(lane, ()), *reply[2]], *reply[3:])
        refused = False
        batch: Batch = []
        if self._multi:
            size = len(self._acking) + len(self._marks) + bool(self._reading)
            queued = [next(rest) for _ in range(1 + size)]
            executed, _, values = next(rest), next(rest), next(rest)
            refused = not self._executed(queued, executed, batch)
        for lane in self._recovering:
            self._recovered(lane, self._after_settling("recover", lane, next(rest)), batch)
        for lane in self._due:
            self._came_due(lane, self._after_settling("due", lane, next(rest)), batch)
        shed = any(lane.trouble for lane in self._lanes)
        if self._multi:
            self._turns.prove_by(values)
        self._turns.drop([lane for lane in self._turns.lanes if lane.lost])
        if (refused or shed) and not batch:
            return None
        return [(lane, messages) for lane, messages in batch if not lane.lost]

    def _after_settling(self, name: str, lane: Lane, reply: Any) -> Any:
        """Return the reply of a script that ran after all was settled; else it brings what was just handled
        again.

        What due.lua gives to a lane of an unordered group it does not give again, so it is not asked again
        there.
        """
        if lane in self._late and not (name == "due" and lane.ordering == "none"):
            reply = self._turns.need_link().call(*self._script(name, lane, by_text=True))
        return self._once_more(name, lane, reply)

    def _once_more(self, name: str, lane: Lane, reply: Any, part: Outcomes | None = None) -> Any:
        """Return the reply, asked once more if need be; None, and the lane is lost, if a key of it holds
        foreign data.
        """
        if is_noscript(reply):
            self._late.add(lane)
            reply = self._turns.need_link().call(*self._script(name, lane, part, by_text=True))
        while not self._sheds([lane], reply):
            raise_first_error([reply])
            if reply[0] != UNFINISHED:
                lane.lost = lane.lost or reply[0] == 0
                return reply
            self._late.add(lane)
            reply = self._turns.need_link().call(*self._script(name, lane, part, by_text=True))
        return None

    def _sheds(self, lanes: list[Lane], reply: Any) -> bool:
        """True if this is the error of a lane with foreign data in a key. The slice goes on without that
        lane.
        """
        if not is_of_one_partition(reply):
            return False
        blame(self._turns.need_link(), lanes, reply)
        return True

    def _executed(self, queued: list[Any], executed: Any, batch: Batch) -> bool:
        if isinstance(executed, ServerError):
            errors = [reply for reply in queued if isinstance(reply, ServerError)]
            if any(error.code == "OOM" for error in errors):
                if self._turns.marking:
                    self._turns.marking = False  # SET is refused; without it newer servers take the rest
                    return False
                self._by_script(batch)
                return True
            raise_first_error([*errors, executed])
        if executed is None:
            for lane in self._lanes:
                lane.next_due = 0  # a lease still ours was touched by redrive.lua: look what is due
            self._turns.read_eras()  # … or by ensure.lua
            return False
        acked = executed[: len(self._acking)]
        for lane, reply in zip(self._acking, acked, strict=True):
            if not self._sheds([lane], reply):
                raise_first_error([reply])
                lane.acks = []
        if self._reading and self._sheds(self._reading, executed[-1]):
            executed[-1] = None
        raise_first_error(executed[len(acked) :])
        for lane, mark in self._marks.items():
            lane.marked = mark
        if self._reading and executed[-1] is not None:
            self._fetched({bytes(stream): entries for stream, entries in executed[-1]}, batch)
        return True

    def _fetched(self, streams: dict[bytes, list[Any]], batch: Batch) -> None:
        for lane in self._reading:
            entries = streams.get(lane.keys.stream.encode())
            if entries:
                lane.last_id = lane.seen = text(entries[-1][0])
                batch.append((lane, lane.messages(entries)))

    def _by_script(self, batch: Batch) -> None:
        """Do the turn by a script: Redis before 7.4 refuses every MULTI when memory is full."""
        for lane in self._lanes:
            fetch = self._count if lane in self._reading else 0
            if not (lane.acks or fetch):
                continue
            command = self._script("turn", lane, by_text=True, fetch=fetch, acks=True)
            link = self._turns.need_link()
            link.received, link.limit = 0, MOST_BYTES if fetch > 1 else math.inf
            reply = link.call(*command)
            link.limit = math.inf
            if self._sheds([lane], reply):
                continue
            raise_first_error([reply])
            if reply[0] == 0:
                lane.lost = True
                continue
            lane.acks = []
            if not lane.lost:
                lane.settled(*reply[2:])
            if reply[1]:
                lane.last_id = lane.seen = text(reply[1][-1][0])
                batch.append((lane, lane.messages(reply[1])))

    def _recovered(self, lane: Lane, reply: Any, batch: Batch) -> None:
        if lane.lost:
            return
        _, entries, position = reply
        lane.position = text(position)
        batch.append((lane, lane.messages(entries)))

    def _came_due(self, lane: Lane, reply: Any, batch: Batch) -> None:
        if lane.lost:
            return
        _, entries, states, trimmed, next_due = reply
        key = lane.keys.state(lane.id.group)
        for entry, known in zip(entries, states, strict=True):
            lane.failures[text(entry[0])] = Failure.load(known, key, text(entry[0]))
        for message_id, known in trimmed:
            lane.failures.setdefault(text(message_id), Failure.load(known, key, text(message_id)))
            lane.drop_trimmed(text(message_id))
        lane.next_due = next_due if next_due >= 0 else None
        messages = lane.messages(entries)
        messages.sort(key=lambda message: id_pair(message.id))
        batch.append((lane, messages))


def raise_first_error(replies: Iterable[Any]) -> None:
    for reply in replies:
        if isinstance(reply, ServerError):
            if is_nogroup(reply):
                raise GroupLost(str(reply))
            raise error_of(reply)


def last_delivered(groups: Any, wanted: str) -> str:
    for group in groups:
        named = dict(zip(group[::2], group[1::2], strict=True))
        if text(named[b"name"]) == wanted:
            return text(named[b"last-delivered-id"])
    raise GroupLost(f"NOGROUP No such consumer group {wanted!r}")
