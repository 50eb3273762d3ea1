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

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from bus.consuming import mending, waiting
from bus.consuming.blame import blame
from bus.consuming.lane import Lane
from bus.consuming.plan import PAGE, Batch, GroupLost, Plan, last_delivered, raise_first_error
from bus.consuming.sizes import Sizes
from bus.errors import BusUnavailable, ServerError, StaleLease
from bus.streams import history
from bus.streams.commands import is_of_one_partition, script
from bus.streams.connect import Endpoint, error_of, seconds_of
from bus.streams.wire import Command, Link


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
        self.sizes = sizes or Sizes(PAGE)
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
        never sees. Raises BusUnavailable, StaleLease (no lane is left), GroupLost.
        """
        self._begin(link, learn=True)
        self._mend()

    def _begin(self, link: Link | None, *, learn: bool) -> None:
        if link is not None and link.stale():
            link.close()
            link = None
        if link is None:
            link = self._endpoint.connect()
            self._link = link  # to be closed, should the question break
            link.history = history.ask(link)
        self._link = link
        for lane in self.lanes:
            lane.doubt(link)
        late = self._void_late_turns()
        # The link may still watch the leases of the slice before.
        opening: list[Command] = [*late, ("UNWATCH",), self.watch(), self.mget(), ("TIME",)]
        self._asked = self._clock()
        voided = [lane for lane in self.lanes if lane.recovering for _ in range(2)]
        replies = link.pipe([*opening, *(self._reads() if learn else ())])
        for lane, reply in zip(voided, replies, strict=False):
            self._check(lane, [reply])
        clock = replies.pop(len(opening) - 1)  # where TIME is forbidden messages are handled all the same
        replies = replies[len(late) :]
        raise_first_error(replies[:3])
        self._server_ahead = seconds_of(clock) - self._clock()
        if learn:
            self._take_in(replies[3:])
        self.prove_by(replies[2])
        self.drop([lane for lane in self.lanes if lane.lost])

    def _void_late_turns(self) -> list[Command]:
        """Return commands that void a turn of a broken connection, in lanes where left-overs are looked for.

        It may still be on its way, under the same lease, and nobody would see what it fetched. To write the
        lease anew voids its WATCH.
        """
        late = []
        for lane in self.lanes:
            if lane.recovering:
                group, state = lane.id.group, lane.keys.state(lane.id.group)
                late += [
                    script("lease").by_text(
                        [lane.keys.lease(group, lane.id.lane), lane.keys.stream, state],
                        [lane.lease, lane.lease, group, lane.id.lane, ""],
                    ),
                    # What is gone from ahead of the group is seen best before it reads on.
                    script("lost").by_text([lane.keys.stream, state], ["?", group]),
                ]
        return late

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
        self._take_in(self.need_link().pipe(self._reads()))
        self.drop([lane for lane in self.lanes if lane.lost])

    def _check(self, lane: Lane, replies: list[Any]) -> bool:
        """Return False and mark the lane if a key of it holds something foreign. Raises other errors."""
        for reply in replies:
            if is_of_one_partition(reply):
                blame(self.need_link(), [lane], reply)
                return False
        raise_first_error(replies)
        return True

    def _mend(self) -> None:
        """Put waiting messages right, in lanes where left-overs are looked for: they may not fit together
        either.
        """
        mending.mend(self, [lane for lane in self.lanes if not lane.mended])

    def _reads(self) -> list[Command]:
        reads: list[Command] = []
        for lane in self.lanes:
            if lane.link is None:
                reads += waiting.first(lane.keys, lane.id.group)
            else:
                # Between two slices an operator may have given dead letters back (see redrive.lua), and the
                # stream may have vanished and been made again (see ensure.lua).
                reads += [("ZRANGE", lane.keys.retry(lane.id.group), 0, 0, "WITHSCORES"), _era(lane)]
            if lane.last_id is None:
                reads.append(("XINFO", "GROUPS", lane.keys.stream))
        return reads

    def _take_in(self, replies: list[Any]) -> None:
        rest = iter(replies)
        for lane in self.lanes:
            is_new = lane.link is None
            known = [next(rest) for _ in range(waiting.REPLIES if is_new else 2)]
            groups = [next(rest)] if lane.last_id is None else []
            if not self._check(lane, [*known, *groups]):
                continue
            if is_new:
                found = waiting.rest(self.need_link().pipe, lane.keys, lane.id.group, known)
                if isinstance(found, ServerError):
                    self._check(lane, [found])  # raises what is not of this lane alone
                    continue
                lane.load(found)
            else:
                lane.look_at(known[0])
                lane.take_in(known[1])
            lane.link = self._link
            if groups and not lane.at(last_delivered(groups[0], lane.id.group)):
                raise GroupLost(
                    f"The server knows group {lane.id.group!r} of {lane.keys.stream} at {lane.last_id}, "
                    f"but it was at {lane.seen}: its data are older than what was settled."
                )

    def read_eras(self) -> None:
        """Read the eras anew (which messages the ids mean): a lease was touched, perhaps by ensure.lua."""
        replies = self.need_link().pipe([_era(lane) for lane in self.lanes])
        for lane, raw in zip(self.lanes, replies, strict=True):
            if self._check(lane, [raw]):
                lane.take_in(raw)

    def reopen(self) -> None:
        """After a lost connection: prove the leases anew, settle what is kept, and look for left-overs.

        A fetch whose reply was lost is in the pending list; a settle that had happened changes nothing
        when it is sent again.
        """
        if link := self.close():
            link.close()  # refused by the server, not broken: a socket that nobody would close
        for lane in self.lanes:
            lane.last_id = None
            lane.leave_over()
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

    def take(self, count: int) -> Batch:
        """Settle everything that is kept and fetch about `count` messages.

        Returns them by lane; an empty list means that nothing is there now. Raises BusUnavailable or
        ReplyLost (what was kept is still kept), StaleLease (no lane is left), GroupLost.
        """
        batch = self._turn(count)
        while batch is None:  # refused, by another lane's lease or for memory: once more
            batch = self._turn(count)
        return batch

    def settle(self) -> None:
        """Settle everything that is kept; fetch nothing."""
        if any(lane.acks or lane.outcomes for lane in self.lanes):
            self.take(0)

    def mark_unordered(self) -> None:
        """Write the mark of an unordered group. (In ordered groups every turn does.)"""
        for lane in list(self.lanes):
            if lane.ordering == "none":
                own = [lane.keys.stream, lane.keys.mark(lane.id.group), lane.keys.retry(lane.id.group)]
                self.need_link().call(*script("mark").by_text(own, [lane.id.group, "-", PAGE]))

    def _turn(self, count: int) -> Batch | None:
        link = self.need_link()
        plan = Plan(self, self.sizes.bound(count))
        plan.settle_early()
        self._asked = self._clock()
        link.received, link.limit = 0, plan.limit
        link.send(plan.packed, plan.replies)
        replies = [link.receive() for _ in range(plan.replies)]
        link.limit = math.inf
        batch = plan.take_in(replies)
        if batch:
            self.sizes.learn(sum([len(messages) for _, messages in batch]), link.received)
        return batch

    def prove(self) -> None:
        """Read the leases again; drop lanes that were lost. Raises StaleLease if none is left."""
        if not self.lanes:
            raise StaleLease("All lanes of this slice were lost before.")
        self._asked = self._clock()
        self.prove_by(self.need_link().call(*self.mget()))

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
        if is_of_one_partition(reply):
            blame(link, lanes, reply)
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

    def watch(self) -> Command:
        return ("WATCH", *(lane.keys.lease(lane.id.group, lane.id.lane) for lane in self.lanes))

    def mget(self) -> Command:
        return ("MGET", *(lane.keys.lease(lane.id.group, lane.id.lane) for lane in self.lanes))

    def prove_by(self, values: Any) -> None:
        if isinstance(values, ServerError):
            raise error_of(values)
        for lane, value in zip(self.lanes, values, strict=True):
            lane.lost = lane.trouble is not None or value is None or value != lane.lease.encode()
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


def _era(lane: Lane) -> Command:
    return ("HMGET", lane.keys.state(lane.id.group), "era", "ordering")
