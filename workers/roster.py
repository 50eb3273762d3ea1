"""The table of workers in Redis: this worker's beat in it, and who of the others is alive or gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from bus.client import Bus
from bus.lane import LaneId
from bus.streams import commands
from bus.subscriptions import Subscription
from workers.declines import load
from workers.identity import Identity, is_proven_gone
from workers.liveness import Liveness


class Roster:
    """One worker's view of the table. Not thread-safe. Raises BusUnavailable."""

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
        self._groups = sorted({each.group for each in subscriptions})
        self._serves = sorted({f"{each.topic}/{each.group}" for each in subscriptions})
        self._table: dict[str, dict[str, Any]] = {}
        self._struck_off: set[str] = set()
        """Workers that we have seen to be gone. One that comes back is among the peers again."""
        self.gone: frozenset[str] = frozenset()
        """Workers in the table that are dead, or provably gone from this host."""
        self.peers: frozenset[str] = frozenset()
        """Live workers, this one included."""
        self.leader = ""
        """Who does the upkeep: the first in sort order of the workers whose beat was seen to move lately.
        That is known sooner than who is dead, and leases do not hang on it."""

    def beat(self, *, leaving: bool = False, declines: list[str] | None = None) -> None:
        """Raise our counter, read everybody's, and judge.

        `leaving`: this worker takes no lanes any more. `declines`: that it is busy, and with
        which it can do nothing, as of `Declines.dump`.
        """
        self._beat += 1
        record = {
            **self._identity.to_record(),
            "groups": self._groups,
            "serves": self._serves,
            "processes": self._processes,
            "leaving": leaving,
            "declines": declines,
            "beat": self._beat,
        }
        me, key = self._identity.incarnation, self._bus.keys.workers
        reply = commands.run(self._bus.client, "beat", [key], [me, orjson.dumps(record)])
        self._table = {name: orjson.loads(raw) for name, raw in commands.fields_of(reply).items()}
        self._liveness.observe({name: known["beat"] for name, known in self._table.items()}, self._clock())
        proven = {name for name, known in self._table.items() if name != me and is_proven_gone(known)}
        self.gone = frozenset(self._liveness.dead() | proven)
        self.peers = frozenset(self._table.keys() - self.gone)
        self.leader = min(self._liveness.moving() & self.peers, default=me)
        if self._beat == 1:
            self._bus.registry.hint("join")

    def serving(self) -> dict[str, set[str]]:
        """Live worker that is not about to leave → what it serves, as `topic/group`."""
        known = {name: self._table[name] for name in self.peers}
        return {name: set(each.get("serves", ())) for name, each in known.items() if not each.get("leaving")}

    def declining(self) -> dict[str, set[LaneId]]:
        """Live worker that is busy → the lanes that it declines."""
        known = {name: self._table[name].get("declines") for name in self.peers}
        return {name: load(texts) for name, texts in known.items() if texts is not None}

    def is_gone(self, incarnation: str) -> bool:
        """Whether the owner of a lease is dead; also for one that is not in the table."""
        if incarnation in self.peers:
            return False
        if incarnation in self._struck_off:
            return True
        if not self._liveness.is_dead(incarnation):
            return False
        # It may have joined, and taken lanes, after we read the table.
        known = incarnation in self._table
        return known or not self._bus.client.call("HEXISTS", self._bus.keys.workers, incarnation)

    def strike_off(self) -> list[str]:
        """Remove the records of workers that nobody needs to observe any more: we serve all that they
        served (and have freed their lanes), or they have been dead for long."""
        ours = {
            name for name in self.gone if set(self._serves).issuperset(self._table[name].get("serves", ()))
        }
        forgotten = sorted((ours | self._liveness.long_dead()) & self.gone)
        if forgotten:
            self._bus.client.call("HDEL", self._bus.keys.workers, *forgotten)
            self._struck_off.update(forgotten)
        return forgotten

    def leave(self) -> None:
        """This worker stops."""
        self._bus.client.call("HDEL", self._bus.keys.workers, self._identity.incarnation)
        self._bus.registry.hint("leave")

    def failed(self) -> None:
        """A reading failed: the observation starts anew."""
        self._liveness.failed(self._clock())

    def next_look(self) -> float:
        """Seconds until the next beat is due."""
        return self._liveness.next_look(self._clock())
