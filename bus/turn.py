"""Turns: one round trip that settles what was handled and fetches what is next, for a set of lanes.

    MULTI · XACK … · XREADGROUP · EXEC · WATCH leases · MGET leases        in one write

The fence is Redis's own optimistic lock: the leases are WATCHed, so if any of them has changed since it
was last seen to be ours, the server executes nothing, and a worker that was frozen and comes back can
neither acknowledge nor fetch. Outcomes other than "done" go through `turn.lua`, which makes the same
check and, being flagged allow-oom, also works when memory is full.

What a turn fetches, lane by lane: left-overs (after a takeover, a death or a lost reply), else retries
that are due, else new messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bus.errors import BusError, BusUnavailable, ServerError, StaleLease
from bus.lane import Failure, Lane
from bus.streams.commands import Script, is_nogroup, is_noscript, script, text
from bus.streams.connect import Endpoint, error_of
from bus.streams.wire import Command, Link, pack_all
from bus.values import Message, id_pair

#: Left-overs looked at in one turn.
PAGE = 500

Batch = list[tuple[Lane, list[Message]]]


class GroupLost(BusError):
    """A stream or its group has vanished under a running slice; it must be made again."""


class Turns:
    """The turns of one slice, on one link, over the lanes of one group. Not thread-safe."""

    def __init__(
        self,
        endpoint: Endpoint,
        lanes: Sequence[Lane],
        *,
        held_limit: int,
        dead_limit: int,
        drain_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint
        self.held_limit = held_limit
        self.dead_limit = dead_limit
        self.drain_only = drain_only
        """True: settle what is pending, take nothing else (an orphaned lane that will be removed)."""
        self._clock = clock
        self._link: Link | None = None
        self._server_ahead = 0.0
        self.marking = True
        """Whether marks are written; not while memory is full."""
        self.lanes = list(lanes)
        self.proved = 0.0
        """When the leases were last seen to be ours, by `clock`."""

    # ------------------------------------------------------------------ opening

    def open(self, link: Link | None = None) -> None:
        """Watch and prove the leases, and read what is not known yet of the lanes.

        Nothing may be fetched in the same write: a stale slice would fetch what the real owner then
        never sees. Raises BusUnavailable, StaleLease (no lane is left), GroupLost.
        """
        self._link = link if link is not None and not link.stale() else self._endpoint.connect()
        late = self._void_late_turns()
        # The link may still watch the leases of the slice before.
        opening: list[Command] = [*late, ("UNWATCH",), self._watch(), self._mget(), ("TIME",)]
        replies = self._link.pipe([*opening, *self._reads()])
        _raise_first_error(replies)
        replies = replies[len(late) :]
        seconds, micros = replies[3]
        self._server_ahead = int(seconds) + int(micros) / 1e6 - self._clock()
        self._take_in(replies[4:])
        self._prove(replies[2])

    def _void_late_turns(self) -> list[Command]:
        """Where left-overs are looked for, a turn of a broken connection may still be on its way, under
        the same lease; what it fetched nobody would see. Writing the lease anew voids its WATCH."""
        return [
            script("lease").by_text(
                [
                    lane.keys.lease(lane.id.group, lane.id.lane),
                    lane.keys.stream,
                    lane.keys.state(lane.id.group),
                ],
                [lane.lease, lane.lease, lane.id.group, lane.id.lane, ""],
            )
            for lane in self.lanes
            if lane.recovering
        ]

    def _read_lanes(self) -> None:
        replies = self._need_link().pipe(self._reads())
        _raise_first_error(replies)
        self._take_in(replies)

    def _reads(self) -> list[Command]:
        reads: list[Command] = []
        for lane in self.lanes:
            if not lane.loaded:
                group = lane.id.group
                reads += [
                    ("HGETALL", lane.keys.state(group)),
                    ("ZRANGE", lane.keys.retry(group), 0, -1, "WITHSCORES"),
                    ("ZCARD", lane.keys.held(group)),
                ]
            else:
                # Between two slices an operator may have given dead letters back (see redrive.lua).
                reads.append(("ZRANGE", lane.keys.retry(lane.id.group), 0, 0, "WITHSCORES"))
            if lane.last_id is None:
                reads.append(("XINFO", "GROUPS", lane.keys.stream))
        return reads

    def _take_in(self, replies: list[Any]) -> None:
        rest = iter(replies)
        for lane in self.lanes:
            if not lane.loaded:
                lane.load(next(rest), next(rest), next(rest))
            else:
                lane.look_at(next(rest))
            if lane.last_id is None and not lane.at(_last_delivered(next(rest), lane.id.group)):
                raise GroupLost(
                    f"The server knows group {lane.id.group!r} of {lane.keys.stream} at {lane.last_id}, "
                    f"but it was at {lane.seen}: its data are older than what was settled."
                )

    def reopen(self) -> None:
        """After a lost connection: prove the leases anew, settle what is kept, and look for left-overs.

        A fetch whose reply was lost is in the pending list; a settle that had happened changes nothing
        when it is sent again.
        """
        self.close()
        for lane in self.lanes:
            lane.recovering, lane.position, lane.loaded, lane.last_id = True, "-", True, None
        self.open()
        self.settle()
        # What the lost reply said (keys released, retries claimed) is in Redis alone: read it anew.
        for lane in self.lanes:
            lane.loaded = False
        self._read_lanes()

    def close(self) -> Link | None:
        """Give the link up; return it if it is still in step, unwatched, for the next slice."""
        link, self._link = self._link, None
        if link is None or link.closed:
            return None
        if link.pending:
            link.close()
            return None
        return link

    # ------------------------------------------------------------------ turns

    def take(self, count: int) -> Batch:
        """Settle everything that is kept and fetch about `count` messages.

        Returns them by lane; an empty list means that nothing is there now. Raises BusUnavailable or
        ReplyLost (what was kept is kept), StaleLease (no lane is left), GroupLost.
        """
        batch = self._turn(count)
        while batch is None:  # refused, by another lane's lease or for memory: once more
            batch = self._turn(count)
        return batch

    def settle(self) -> None:
        """Settle everything that is kept, fetch nothing."""
        if any(lane.acks or lane.outcomes for lane in self.lanes):
            self.take(0)

    def mark_unordered(self) -> None:
        """Note how far an unordered group is; in ordered ones every turn does."""
        for lane in self.lanes:
            if lane.ordering == "none":
                own = [lane.keys.stream, lane.keys.mark(lane.id.group), lane.keys.retry(lane.id.group)]
                self._need_link().call(*script("mark").by_text(own, [lane.id.group]))

    def _turn(self, count: int) -> Batch | None:
        link = self._need_link()
        plan = _Plan(self, count)
        link.send(plan.packed, plan.replies)
        replies = [link.receive() for _ in range(plan.replies)]
        return plan.take_in(replies)

    def prove(self) -> None:
        """Read the leases again; drop lanes that were lost. Raises StaleLease if none is left."""
        self._prove(self._need_link().call(*self._mget()))

    def wait(self, seconds: float, on_block: Callable[[int], None]) -> bool:
        """Wait for a new message in any lane that may fetch; True if one came.

        `on_block` is called with the connection's id just before, so that somebody may CLIENT UNBLOCK it.
        The WATCH stays in force.
        """
        lanes = [lane for lane in self.lanes if lane.may_fetch(self.held_limit) and lane.last_id]
        link = self._need_link()
        if not lanes or seconds <= 0:
            return False
        if not link.client_id:
            link.client_id = int(link.call("CLIENT", "ID"))
        on_block(link.client_id)
        milliseconds = max(1, round(seconds * 1000))
        ids = [lane.last_id or "0-0" for lane in lanes]
        reply = link.call("XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS",
                          *(lane.keys.stream for lane in lanes), *ids)  # fmt: skip
        _raise_first_error([reply])
        return reply is not None

    # ------------------------------------------------------------------ time

    def server_now(self) -> int:
        """Milliseconds by the server's clock."""
        return int((self._clock() + self._server_ahead) * 1000)

    def due_in(self) -> float | None:
        """Seconds until the earliest retry is due; None if there is none."""
        dues = [lane.next_due for lane in self.lanes if lane.next_due is not None]
        return max(0.0, (min(dues) - self.server_now()) / 1000) if dues else None

    # ------------------------------------------------------------------ leases

    def _need_link(self) -> Link:
        if self._link is None:
            raise BusUnavailable("This slice has no connection.")
        return self._link

    def _watch(self) -> Command:
        return ("WATCH", *(lane.keys.lease(lane.id.group, lane.id.lane) for lane in self.lanes))

    def _mget(self) -> Command:
        return ("MGET", *(lane.keys.lease(lane.id.group, lane.id.lane) for lane in self.lanes))

    def _prove(self, values: Any) -> None:
        if isinstance(values, ServerError):
            raise error_of(values)
        for lane, value in zip(self.lanes, values, strict=True):
            lane.lost = value is None or value.decode() != lane.lease
        self.drop(lane for lane in self.lanes if lane.lost)
        self.proved = self._clock()

    def drop(self, lost: Iterable[Lane]) -> None:
        """Go on without these lanes. Raises StaleLease if none is left."""
        gone = list(lost)
        self.lanes = [lane for lane in self.lanes if lane not in gone]
        if gone and not self.lanes:
            names = ", ".join(f"{lane.id.topic}/{lane.id.partition}" for lane in gone)
            raise StaleLease(f"The lease of {names} belongs to another worker now.")


class _Plan:
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
        self._settling = [lane for lane in self._lanes if lane.outcomes]
        self._acking = [lane for lane in self._lanes if lane.acks]
        fetching = [] if count == 0 else self._lanes
        self._recovering = [lane for lane in fetching if lane.recovering]
        flowing = [] if turns.drain_only else [lane for lane in fetching if not lane.recovering]
        self._due = [lane for lane in flowing if lane.next_due is not None and lane.next_due <= now]
        self._reading = [
            lane for lane in flowing if lane not in self._due and lane.may_fetch(turns.held_limit)
        ]
        self._count = max(1, count // max(1, len(fetching)))
        self._page = min(PAGE, max(1, count))
        commands = self._commands()
        self.replies = len(commands)
        self.packed = pack_all(commands)

    def _commands(self) -> list[Command]:
        commands = [self._script("turn", lane) for lane in self._settling]
        self._multi = bool(self._acking or self._reading)
        if self._multi:
            commands.append(("MULTI",))
            commands += [("XACK", lane.keys.stream, lane.id.group, *lane.acks) for lane in self._acking]
            commands += [("SET", lane.keys.mark(lane.id.group), mark) for lane, mark in self._marks.items()]
            if self._reading:
                commands.append(self._read())
            commands.append(("EXEC",))
            commands += [self._turns._watch(), self._turns._mget()]
        commands += [self._script("recover", lane) for lane in self._recovering]
        commands += [self._script("due", lane) for lane in self._due]
        return commands

    def _read(self) -> Command:
        lane = self._reading[0].id
        streams = [each.keys.stream for each in self._reading]
        return ("XREADGROUP", "GROUP", lane.group, lane.lane, "COUNT", self._count, "STREAMS",
                *streams, *([">"] * len(streams)))  # fmt: skip

    def _script(
        self, name: str, lane: Lane, *, by_text: bool = False, fetch: int = 0, acks: bool = False
    ) -> Command:
        keys, group = lane.keys, lane.id.group
        own = [keys.stream, keys.lease(group, lane.id.lane), keys.retry(group)]
        base: list[Any] = [lane.lease, group, lane.id.lane]
        if name == "turn":
            own += [keys.held(group), keys.state(group), keys.dead(group), keys.mark(group)]
            done = lane.acks if acks else ()
            base += [fetch, self._turns.dead_limit, lane.outcomes.dump(done), self._marks.get(lane, "")]
        elif name == "recover":
            own += [keys.held(group), keys.state(group)]
            base += [lane.position, 1 if lane.suspect else self._page, lane.ordering]
        else:
            own += [keys.state(group)]
            base += [1 if lane.suspect else self._page, "1" if lane.ordering == "none" else "0"]
        wanted: Script = script(name)
        return wanted.by_text(own, base) if by_text else wanted.by_sha(own, base)

    # ------------------------------------------------------------------ replies

    def take_in(self, replies: list[Any]) -> Batch | None:
        """The batch, or None if the turn must be tried again."""
        rest = iter(replies)
        for lane in self._settling:
            self._settled(lane, self._once_more("turn", lane, next(rest)))
        refused = False
        batch: Batch = []
        if self._multi:
            size = len(self._acking) + len(self._marks) + bool(self._reading)
            queued = [next(rest) for _ in range(1 + size)]
            executed, _, values = next(rest), next(rest), next(rest)
            refused = not self._executed(queued, executed, batch)
        for lane in self._recovering:
            self._recovered(lane, self._once_more("recover", lane, next(rest)), batch)
        for lane in self._due:
            self._came_due(lane, self._once_more("due", lane, next(rest)), batch)
        if self._multi:
            self._turns._prove(values)
        self._turns.drop([lane for lane in self._turns.lanes if lane.lost])
        if refused and not batch:
            return None
        return [(lane, messages) for lane, messages in batch if not lane.lost]

    def _once_more(self, name: str, lane: Lane, reply: Any) -> Any:
        if is_noscript(reply):
            reply = self._turns._need_link().call(*self._script(name, lane, by_text=True))
        _raise_first_error([reply])
        if reply[0] == 0:
            lane.lost = True
        return reply

    def _settled(self, lane: Lane, reply: Any) -> None:
        if not lane.lost:
            lane.settled(reply[2], reply[3], reply[4], reply[5])

    def _executed(self, queued: list[Any], executed: Any, batch: Batch) -> bool:
        if isinstance(executed, ServerError):
            errors = [reply for reply in queued if isinstance(reply, ServerError)]
            if any(error.code == "OOM" for error in errors):
                if self._turns.marking:
                    self._turns.marking = False  # SET is refused; without it newer servers take the rest
                    return False
                self._by_script(batch)
                return True
            _raise_first_error([*errors, executed])
        if executed is None:
            for lane in self._lanes:
                lane.next_due = 0  # a lease still ours was touched by redrive.lua: look what is due
            return False
        _raise_first_error(executed)
        for lane in self._acking:
            lane.acks = []
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
        """Redis before 7.4 refuses every MULTI when memory is full; a script may still do the same."""
        for lane in self._lanes:
            fetch = self._count if lane in self._reading else 0
            if not (lane.acks or fetch):
                continue
            command = self._script("turn", lane, by_text=True, fetch=fetch, acks=True)
            reply = self._turns._need_link().call(*command)
            _raise_first_error([reply])
            if reply[0] == 0:
                lane.lost = True
                continue
            lane.acks = []
            self._settled(lane, reply)
            if reply[1]:
                lane.last_id = lane.seen = text(reply[1][-1][0])
                batch.append((lane, lane.messages(reply[1])))

    def _recovered(self, lane: Lane, reply: Any, batch: Batch) -> None:
        if lane.lost:
            return
        _, entries, position, trimmed = reply
        lane.trimmed += trimmed
        lane.position = text(position)
        batch.append((lane, lane.messages(entries)))

    def _came_due(self, lane: Lane, reply: Any, batch: Batch) -> None:
        if lane.lost:
            return
        _, entries, states, trimmed, next_due, _now = reply
        for entry, known in zip(entries, states, strict=True):
            lane.failures[text(entry[0])] = Failure.load(known) if known else Failure("")
        for message_id, known in trimmed:
            lane.failures.setdefault(text(message_id), Failure.load(known) if known else Failure(""))
            lane.drop_trimmed(text(message_id))
        lane.next_due = next_due if next_due >= 0 else None
        messages = lane.messages(entries)
        messages.sort(key=lambda message: id_pair(message.id))
        batch.append((lane, messages))


def _raise_first_error(replies: Iterable[Any]) -> None:
    for reply in replies:
        if isinstance(reply, ServerError):
            if is_nogroup(reply):
                raise GroupLost(str(reply))
            raise error_of(reply)


def _last_delivered(groups: Any, wanted: str) -> str:
    for group in groups:
        named = dict(zip(group[::2], group[1::2], strict=True))
        if text(named[b"name"]) == wanted:
            return text(named[b"last-delivered-id"])
    raise GroupLost(f"NOGROUP No such consumer group {wanted!r}")
