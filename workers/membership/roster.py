"""Writes this worker's beat into the table of workers, and tells which of the others live or are gone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence

import orjson

from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.format.lane_id import LaneId
from bus.format.worker_record import WorkerRecord, dump_lane, read_table
from bus.safety.complaints import Complaints
from bus.streams import commands
from workers.liveness import BEAT_SECONDS, Liveness
from workers.membership.identity import Identity, is_proven_gone

logger = logging.getLogger("jitney.workers")

#: How long the record of a worker that is gone stays, so that the workers of its host, which see first that
#: it is gone, leave the others time to read it. Seconds.
SEEN_SECONDS = 2 * BEAT_SECONDS


class Roster:
    """One worker's view of the table of workers. Not thread-safe. Raises BusUnavailable."""

    def __init__(
        self,
        bus: Bus,
        identity: Identity,
        subscriptions: Iterable[Subscription],
        processes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._identity = identity
        self._processes = processes
        self._clock = clock
        self._liveness = Liveness(identity.incarnation)
        self._beat = 0
        subscriptions = list(subscriptions)
        self._groups = sorted({served.group for served in subscriptions})
        self._serves = sorted({f"{served.topic}/{served.group}" for served in subscriptions})
        self._table: dict[str, WorkerRecord] = {}
        self._names: Collection[str] = ()
        """The names of all workers in the table, also of those whose record cannot be read."""
        self._complaints = Complaints(logger, clock=clock)
        self._gone_since: dict[str, float] = {}
        self._struck_off: set[str] = set()
        """The workers whose records we have removed. One that comes back is among the peers again."""
        self.gone: frozenset[str] = frozenset()
        """The workers in the table that are dead, or provably gone from this host."""
        self.peers: frozenset[str] = frozenset()
        """The live workers, this one included."""
        self.leader = ""
        """The worker that does the upkeep: the first in sort order whose beat was seen to move lately. That
        is known sooner than who is dead, and no lease depends on it.
        """

    def beat(
        self, *, leaving: bool = False, declines: list[str] | None = None, unheld: Sequence[LaneId] = ()
    ) -> None:
        """Raise our beat counter, read the whole table, and judge who lives.

        `leaving`: this worker takes no lanes any more. `declines`: what `Declines.dump` returns. `unheld`:
        the lanes that nobody has held for long.
        """
        self._beat += 1
        own_record = {
            **self._identity.to_record(),
            "groups": self._groups,
            "serves": self._serves,
            "processes": self._processes,
            "leaving": leaving,
            "declines": declines,
            "unheld": [dump_lane(lane) for lane in unheld],
            "beat": self._beat,
        }
        me, key = self._identity.incarnation, self._bus.keys.workers
        reply = commands.run(self._bus.client, "beat", [key], [me, orjson.dumps(own_record)])
        table = read_table(key, reply)
        for record in table.unreadable:
            self._complaints.say(("record", record.field), "A record of a worker is passed over: %s.", record)
        self._table, self._names = table.records, table.counters.keys()
        self._liveness.observe(table.counters, self._clock())
        proven = {name for name, record in self._table.items() if name != me and is_proven_gone(record.proof)}
        self.gone = frozenset(self._liveness.dead() | proven)
        self._gone_since = {name: self._gone_since.get(name, self._clock()) for name in self.gone}
        self.peers = frozenset(self._table.keys() - self.gone)
        self.leader = min(self._liveness.moving() & self.peers, default=me)
        if self._beat == 1:
            self._bus.registry.hint("join")

    def serving(self, groups: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
        """Return live worker → what it serves, as `topic/group`, without those that are about to leave.

        `groups`: the declared ones, as (topic, group); older workers say only the names of groups.
        """
        peers = {name: self._table[name] for name in sorted(self.peers)}
        return {name: self._served(record, groups) for name, record in peers.items() if not record.leaving}

    @staticmethod
    def _served(record: WorkerRecord, groups: Iterable[tuple[str, str]]) -> frozenset[str]:
        if record.serves is not None:
            return record.serves
        return frozenset(f"{topic}/{group}" for topic, group in groups if record.serves_group(topic, group))

    def declining(self) -> dict[str, frozenset[LaneId]]:
        """Return live worker that is busy → the lanes that it declines."""
        declined = {name: self._table[name].declines for name in sorted(self.peers)}
        return {name: lanes for name, lanes in declined.items() if lanes is not None}

    def is_gone(self, incarnation: str) -> bool:
        """Return whether the owner of a lease is dead, also one that is not in the table."""
        if incarnation in self.peers:
            return False
        if incarnation in self._struck_off:
            return True
        if not self._liveness.is_dead(incarnation):
            return False
        # It may have joined, and taken lanes, after we read the table.
        was_read = incarnation in self._names
        return was_read or not self._bus.client.call("HEXISTS", self._bus.keys.workers, incarnation)

    def may_hold(self, owner: str) -> bool:
        """Return whether the owner of a lease may live: it is in the table, readable or not, and not gone."""
        return owner in self._names and owner not in self.gone

    def strike_off(self) -> list[str]:
        """Remove the records of workers that have been gone for SEEN_SECONDS; return their names.

        Call it once their lanes are free. Records that cannot be read stay, for somebody to look at.
        """
        late = self._clock() - SEEN_SECONDS
        removed = sorted(name for name in self.gone & self._table.keys() if self._gone_since[name] <= late)
        if removed:
            self._bus.client.call("HDEL", self._bus.keys.workers, *removed)
            self._struck_off.update(removed)
        return removed

    def leave(self) -> None:
        """Remove the record of this worker: it stops."""
        self._bus.client.call("HDEL", self._bus.keys.workers, self._identity.incarnation)
        self._bus.registry.hint("leave")

    def observe_anew(self) -> None:
        """Forget what was seen of the beats: a reading failed."""
        self._liveness.begin_anew(self._clock())

    def next_look(self) -> float:
        """Return the seconds until the next beat is due."""
        return self._liveness.next_look(self._clock())
