"""Turns: one round trip that settles what was handled and fetches what is next, for a set of lanes.

    MULTI · XACK … · XREADGROUP · EXEC · WATCH leases · MGET leases        in one write

`bus.consuming.question` says what a turn asks. This sends it and receives the replies.
`bus.consuming.answer` says what they mean. `bus.consuming.fence` keeps out whoever has lost the lease.
Outcomes other than "done" go through `turn.lua`, which compares the lease itself and, being flagged
allow-oom, also works when memory is full.

What a turn fetches, lane by lane: left-overs (after a takeover, a death or a lost reply), else retries
that are due, else new messages.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from bus.consuming import fence, mending, opening, question
from bus.consuming.answer import Answer, Delivery
from bus.consuming.blame import accept, blamed, raise_first_error
from bus.consuming.lane import Lane
from bus.consuming.sizes import Sizes
from bus.consuming.steps import Ask, Steps, run
from bus.errors import BusUnavailable, ServerError, StaleLease
from bus.streams import history
from bus.streams.commands import script
from bus.streams.connect import Endpoint, seconds_of
from bus.streams.wire import Command, Link, pack_all

T = TypeVar("T")

#: Entries of a pending list that one script walks for the mark of an unordered group.
ENTRIES_A_SCRIPT = 500


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
        sizes: Sizes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint
        self.held_limit = held_limit
        self.dead_limit = dead_limit
        self.drain_only = drain_only
        """True: settle what is pending, take nothing else (an orphaned lane that will be removed)."""
        self.sizes = sizes or Sizes(question.WAITING_A_TURN)
        self._clock = clock
        self._link: Link | None = None
        self._server_ahead = 0.0
        self.marking = True
        """Whether marks are written; not while memory is full."""
        self.lanes = list(lanes)
        for lane in self.lanes:
            lane.prove = partial(self.is_ours, lane)
        self._asked = 0.0
        self.proved = 0.0
        """When we last asked whether the leases are ours, and they were, by `clock`. Not when we read the
        answer: it may have lain there while this process was frozen.
        """

    # ------------------------------------------------------------------ opening

    def open(self, link: Link | None = None) -> None:
        """Watch and prove the leases, and read what is not known yet of the lanes.

        Nothing may be fetched in the same write: a stale slice would fetch what the real owner then
        never sees. Raises BusUnavailable, StaleLease (no lane is left), GroupGone.
        """
        self._begin(link, learn=True)
        self._mend()

    def _begin(self, link: Link | None, *, learn: bool) -> None:
        if link is not None and link.stale():
            link.close()
            link = None
        if link is None:
            link = self._endpoint.connect()
            self._link = link  # to be closed, should what follows break
            link.history = history.ask(link)
        self._link = link
        for lane in self.lanes:
            lane.doubt(link)
        recovering = [lane for lane in self.lanes if lane.recovering]
        late = opening.void_late_turns(recovering)
        # The link may still watch the leases of the slice before.
        begin: list[Command] = [
            *late,
            ("UNWATCH",),
            fence.watch(self.lanes),
            fence.read(self.lanes),
            ("TIME",),
        ]
        self._asked = self._clock()
        replies = link.pipe([*begin, *(opening.reads(self.lanes) if learn else ())])
        voided = [lane for lane in recovering for _ in range(opening.VOIDING)]
        for lane, reply in zip(voided, replies, strict=False):
            self._run(accept(lane, [reply]))
        clock = replies.pop(len(begin) - 1)  # where TIME is forbidden messages are handled all the same
        replies = replies[len(late) :]
        raise_first_error(replies[:3])
        self._server_ahead = seconds_of(clock) - self._clock()
        if learn:
            self._run(opening.take_in(self.lanes, replies[3:], link))
        self.prove_by(replies[2])
        self.drop([lane for lane in self.lanes if lane.lost])

    def learn(self, *lanes: Lane) -> None:
        """Read anew what Redis knows of these lanes, which fits together."""
        for lane in lanes:
            lane.link = None
        self._learn()
        for lane in lanes:
            lane.mended = True

    def relearn(self, lanes: Sequence[Lane]) -> None:
        """Read anew what Redis knows of these lanes, and put it right, after they took in what others left.

        That may be of another history of the server, or of another ordering. Then a message fails that is not
        pending, or is tied to other messages than it was, and what waits behind it would wait for ever.
        """
        self.learn(*lanes)
        for lane in lanes:
            lane.mended = False
        self._mend()

    def _learn(self) -> None:
        link = self.need_link()
        self._run(opening.take_in(self.lanes, link.pipe(opening.reads(self.lanes)), link))
        self.drop([lane for lane in self.lanes if lane.lost])

    def _mend(self) -> None:
        """Put waiting messages right, in lanes where left-overs are looked for: they may not fit together
        either.
        """
        mending.mend(self, [lane for lane in self.lanes if not lane.mended])

    def reopen(self) -> None:
        """After a lost connection: prove the leases anew, settle what is kept, and look for left-overs.

        A fetch whose reply was lost is in the pending list; a settle that had happened changes nothing
        when it is sent again.
        """
        if link := self.close():
            link.close()  # refused by the server, not broken: a socket that nobody would close
        for lane in self.lanes:
            lane.last_id = None
            lane.start_recovery()
        self._begin(None, learn=False)
        # What the lost reply said (keys released, retries claimed) is in Redis alone: settle, then read it.
        self.settle()
        self._learn()
        self._mend()

    def close(self) -> Link | None:
        """Give the link up. Return it, unwatched, for the next slice, if it is still in step."""
        link, self._link = self._link, None
        if link is None or link.closed:
            return None
        if link.pending:
            link.close()
            return None
        return link

    # ------------------------------------------------------------------ turns

    def take(self, count: int) -> Delivery:
        """Settle everything that is kept and fetch about `count` messages.

        Returns them by lane; an empty list means that nothing is there now. Raises BusUnavailable or
        ReplyLost (what was kept is still kept), StaleLease (no lane is left), GroupGone.
        """
        delivery = self._turn(count)
        while delivery is None:  # refused, by another lane's lease or for memory: once more
            delivery = self._turn(count)
        return delivery

    def settle(self) -> None:
        """Settle everything that is kept; fetch nothing."""
        if any(lane.acks or lane.outcomes for lane in self.lanes):
            self.take(0)

    def mark_unordered(self) -> None:
        """Write the mark of an unordered group. (In ordered groups every turn does.)"""
        for lane in list(self.lanes):
            if lane.ordering == "none":
                own = [lane.keys.stream, lane.keys.mark(lane.id.group), lane.keys.retry(lane.id.group)]
                self.need_link().call(*script("mark").by_text(own, [lane.id.group, "-", ENTRIES_A_SCRIPT]))

    def _turn(self, count: int) -> Delivery | None:
        link, count = self.need_link(), self.sizes.bound(count)
        if count:
            for lane in self.lanes:
                if lane.recovering and not lane.position:
                    lane.end_recovery()  # the last page of left-overs has been handled
        asked = question.question(
            self.lanes,
            fetch_from=self.sizes.some(self.lanes) if count else (),
            count=count,
            now=self.server_now(),
            held_limit=self.held_limit,
            dead_limit=self.dead_limit,
            drain_only=self.drain_only,
            marking=self.marking,
        )
        commands = question.commands(asked)
        packed = pack_all(commands)
        answer = Answer(asked)
        if asked.first_portions:
            self._run(answer.settle_first_portions())
        self._asked = self._clock()
        link.received, link.limit = 0, asked.most_bytes
        link.send(packed, len(commands))
        replies = [link.receive() for _ in commands]
        link.limit = math.inf
        try:
            run(answer.read(replies), self._send)
        finally:
            self.marking = self.marking and not answer.memory_full
        dropped = any(lane.trouble for lane in self.lanes)
        if asked.has_multi:
            self.prove_by(answer.leases)
        self.drop([lane for lane in self.lanes if lane.lost])
        if (answer.refused or dropped) and not answer.delivery:
            return None
        delivery = [(lane, messages) for lane, messages in answer.delivery if not lane.lost]
        if delivery:
            self.sizes.learn(sum([len(messages) for _, messages in delivery]), link.received)
        return delivery

    def _run(self, steps: Steps[T]) -> T:
        """Run what reads replies; send what it asks again. Raises what it raises, and ReplyLost."""
        return run(steps, self._send)

    def _send(self, ask: Ask) -> list[Any]:
        link = self.need_link()
        if ask.most_bytes is not None:
            link.received, link.limit = 0, ask.most_bytes
        replies = [link.call(*ask.commands[0])] if len(ask.commands) == 1 else link.pipe(ask.commands)
        if ask.most_bytes is not None:
            link.limit = math.inf
        return replies

    def prove(self) -> None:
        """Read the leases again; drop lanes that were lost. Raises StaleLease if none is left."""
        if not self.lanes:
            raise StaleLease("All lanes of this slice were lost before.")
        self._asked = self._clock()
        self.prove_by(self.need_link().call(*fence.read(self.lanes)))

    def is_ours(self, lane: Lane) -> bool:
        """Return whether a lane is surely still ours. Handlers ask it, between two turns."""
        try:
            self.prove()
        except (BusUnavailable, StaleLease):
            return False
        return not lane.lost

    def wait(self, seconds: float, on_block: Callable[[int], None]) -> bool:
        """Wait for a new message in any lane that may fetch; True if one came.

        `on_block` is called with the connection's id just before, so that somebody may CLIENT UNBLOCK it.
        The WATCH stays in force.
        """
        lanes = [lane for lane in self.lanes if lane.may_fetch(self.held_limit) and lane.last_id]
        link = self.need_link()
        if not lanes or seconds <= 0:
            return False
        if not link.client_id:
            reply = link.call("CLIENT", "ID")
            link.client_id = -1 if isinstance(reply, ServerError) else int(reply)
        if link.client_id > 0:  # else nobody can end the wait, which is short
            on_block(link.client_id)
        milliseconds = max(1, round(seconds * 1000))
        ids = [lane.last_id or "0-0" for lane in lanes]
        reply = link.call("XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS",
                          *(lane.keys.stream for lane in lanes), *ids)  # fmt: skip
        if self._run(blamed(lanes, reply)):
            self.drop([lane for lane in self.lanes if lane.lost])
            return False
        raise_first_error([reply])
        return reply is not None

    # ------------------------------------------------------------------ time

    def server_now(self) -> int:
        """Return the server's time in milliseconds since 1970."""
        return int((self._clock() + self._server_ahead) * 1000)

    def due_in(self) -> float | None:
        """Return the seconds until the earliest retry is due; None if there is none."""
        dues = [lane.next_due for lane in self.lanes if lane.next_due is not None]
        return max(0.0, (min(dues) - self.server_now()) / 1000) if dues else None

    # ------------------------------------------------------------------ leases

    def need_link(self) -> Link:
        if self._link is None:
            raise BusUnavailable("This slice has no connection.")
        return self._link

    def prove_by(self, leases: Any) -> None:
        """Go on without the lanes that are not ours any more. `leases`: the reply to `fence.read`."""
        fence.prove(self.lanes, leases)
        self.drop(lane for lane in self.lanes if lane.lost)
        self.proved = self._asked

    def drop(self, lost: Iterable[Lane]) -> None:
        """Go on without these lanes. Raises StaleLease if none is left."""
        gone = list(lost)
        self.lanes = [lane for lane in self.lanes if lane not in gone]
        if gone and not self.lanes:
            names = ", ".join(f"{lane.id.topic}/{lane.id.partition}" for lane in gone)
            troubles = [str(lane.trouble) for lane in gone if lane.trouble]
            raise StaleLease(f"Nothing can be done in {names} now: {'; '.join(troubles) or 'not our lease'}.")
