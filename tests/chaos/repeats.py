"""Finds for each message that was handled to its end once more the fault that explains it."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.faults import Fault
from tests.chaos.ledger import Call, Handling, Published
from tests.chaos.ownership import UNCLEAN
from tests.chaos.plan import FREEZES, SERVER_KINDS
from tests.chaos.service import Spell, idle

SECOND = 1_000_000_000

#: What a process finishes without settling it is at most one batch: what ended within this long before the
#: last message that it finished, and that message. 0.2 s, and as much again for a machine that is busy.
BATCH = SECOND // 2
#: Within so long after a fault, and after what was published before it was handled again, its repeats come.
PROMISE = 20 * SECOND
SLACK = 10 * SECOND

#: After the server is back, what was in hand is settled within so long by the process that had it. So nothing
#: is repeated but what one had that ended meanwhile.
RECONNECT = 5 * SECOND

#: What a process has ended is settled within so long, while the server is there and no other message of the
#: same batch runs on.
UNSETTLED = SECOND

#: These repeat nothing, whatever else happens meanwhile.
CLEAN = frozenset(("stop", "deploy", "broker", "junk"))

Place = tuple[str, int, str]
"""Where a message is: topic, partition, id."""
Delivery = tuple[str, str, int, str]
"""What is to be handled: group, and place."""


@dataclass(slots=True)
class Repeat:
    """A message that was handled to its end once more."""

    again: Handling
    before: list[Handling]
    """Its earlier deliveries that ended."""
    fault: Fault | None = None
    """The fault that explains it; None: nothing does."""


def place_of(entry: Handling) -> Place:
    return entry.topic, entry.partition, entry.id


def lane_of(entry: Handling) -> tuple[str, str, int]:
    return entry.group, entry.topic, entry.partition


class Attribution:
    """Finds the fault for each repeat.

    A repeat is explained if the process that had finished the message before was hit by a fault, had
    finished it within one batch of that, or had it in hand while it was frozen, and the repeat was
    delivered after the fault and within the recovery of its group. Or if the repeat itself is what a frozen
    process had in hand and had not begun.
    """

    def __init__(
        self,
        published: Sequence[Published],
        handled: Sequence[Handling],
        faults: Sequence[Fault],
        groups: Mapping[str, str],
        calls: Mapping[str, Mapping[str, Call]],
        unserved: Mapping[str, Sequence[Spell]],
    ) -> None:
        self._faults = faults
        self._calls = calls
        self._unserved = unserved
        self._began: dict[Handling, int] = {}
        self._spans: dict[int, list[tuple[Handling, float]]] = defaultdict(list)
        """By process: what began, and when that was over."""
        self._endings: dict[int, list[int]] = defaultdict(list)
        self._wells: dict[int, list[int]] = defaultdict(list)
        """By process: when something ended that had not failed."""
        self._ends: dict[Delivery, list[Handling]] = defaultdict(list)
        running: dict[tuple[int, Delivery], tuple[Handling, int]] = {}
        for entry in handled:
            delivery = (entry.group, *place_of(entry))
            spans = self._spans[entry.pid]
            if entry.what == "start":
                running[entry.pid, delivery] = entry, len(spans)
                spans.append((entry, math.inf))
                continue
            self._endings[entry.pid].append(entry.at)
            start, number = running[entry.pid, delivery]
            spans[number] = start, entry.at
            if entry.what == "end":
                self._wells[entry.pid].append(entry.at)
                self._began[entry] = start.at
                self._ends[delivery].append(entry)
        self._progress = {
            group: self._progress_of(group, topic, published) for group, topic in groups.items()
        }

    def _progress_of(
        self, group: str, topic: str, published: Sequence[Published]
    ) -> tuple[list[int], list[int]]:
        """When each message was published, and when it and all before it had been handled by the group."""
        times, done, latest = [], [], 0
        for message in sorted(published, key=lambda each: each.at):
            ends = self._ends.get((group, *place_of(message)))
            if message.topic == topic and ends:
                latest = max(latest, ends[0].at)
                times.append(message.at)
                done.append(latest)
        return times, done

    def repeats(self) -> list[Repeat]:
        found = []
        for entries in self._ends.values():
            deliveries = sorted(entries, key=self._began.__getitem__)
            for number, again in enumerate(deliveries[1:], start=1):
                repeat = Repeat(again, deliveries[:number])
                repeat.fault = self._explain(repeat)
                found.append(repeat)
        return found

    def _explain(self, repeat: Repeat) -> Fault | None:
        return next(
            (
                fault
                for fault in self._faults
                for before in repeat.before
                if (self._hit(fault, before) and self._follows(fault, repeat.again))
                or self._was_in_hand(fault, repeat.again)
            ),
            None,
        )

    def _hit(self, fault: Fault, before: Handling) -> bool:
        if fault.kind in CLEAN or fault.worker not in (None, before.worker):
            return False
        if fault.pid not in (None, before.pid):
            return False
        if fault.since is not None and self._was_unsettled(fault.since, before):
            # What was handled after that was settled on the server that is back, as ever.
            return before.at <= (fault.until or fault.at) + RECONNECT
        if fault.kind in FREEZES and fault.until is not None and before.at > fault.until:
            return self._began[before] <= fault.until or self._was_in_hand(fault, before)
        earliest, latest = self._batch(fault, before.pid)
        if fault.worker is None and self._endings[before.pid][-1] > latest:
            return False
        return earliest <= before.at <= latest

    def _was_in_hand(self, fault: Fault, handling: Handling) -> bool:
        """It began after the thaw, and was of the call that was in hand, or about to begin, when its process
        was frozen: the leases are looked at before each call, not in it."""
        thawed = fault.until
        if fault.kind not in FREEZES or thawed is None or fault.worker != handling.worker:
            return False
        if self._began[handling] <= thawed:
            return False
        spans = self._spans[handling.pid]
        begun = [start for start, over in spans if start.at <= thawed < over]
        later = [start for start, _ in spans if start.at > thawed]
        lane = lane_of([*begun, *later][0])
        call = self._calls.get(handling.worker, {}).get(lane[0], Call())
        rest = later[: max(0, call.most - len(begun))]
        if call.ends_together:
            over = next((at for at in self._wells[handling.pid] if at > thawed), math.inf)
            rest = [start for start in rest if start.at < over]
        return any(
            lane_of(each) == lane_of(handling) == lane and place_of(each) == place_of(handling)
            for each in rest
        )

    def _was_unsettled(self, at: int, before: Handling) -> bool:
        """Whether a message need not have been settled at the time whose data the server has kept."""
        if before.at >= at - UNSETTLED:
            return True
        known = [ending for ending in self._endings[before.pid] if ending <= at]
        if before.at < self._earliest(known):
            return False
        # It was of the last batch. Then another message of that ran on, or the server was away.
        if any(start.at <= at < over for start, over in self._spans[before.pid]):
            return True
        by = known[-1] + UNSETTLED
        for fault in self._faults:
            if fault.kind in SERVER_KINDS and known[-1] <= (fault.until or fault.at) and fault.at <= by:
                by = max(by, (fault.until or fault.at) + RECONNECT)
        return at <= by

    @staticmethod
    def _earliest(known: list[int]) -> int:
        """The first of the last batch that ended, of these endings of a process."""
        return (known[-2] if len(known) > 1 else 0) - BATCH

    def _batch(self, fault: Fault, pid: int) -> tuple[int, int]:
        """When the messages were finished that this process could not settle any more."""
        endings = self._endings[pid]
        known = [at for at in endings if at <= fault.at]
        if fault.worker is None:
            latest = (fault.until or fault.at) + RECONNECT
        elif fault.kind in FREEZES:
            latest = fault.until or endings[-1]
        else:
            known, latest = endings, endings[-1]
        return self._earliest(known), latest

    def _follows(self, fault: Fault, again: Handling) -> bool:
        """It came within the recovery of its group. While nobody serves the group nothing of it can come."""
        began = self._began[again]
        if began < fault.at:
            return False
        since = self._last_delay(fault)
        waited = self._served(again.group, since, began)
        return waited <= max(PROMISE, self._recovery(fault, again.group)) + SLACK

    def _last_delay(self, fault: Fault) -> int:
        """When the promised time begins: at the last of the faults that follow each other within it.

        To find a worker dead takes others that watch it for a while. An outage of the server begins that
        anew, and whoever watches may be lost as well.
        """
        last = fault.at
        for later in sorted(self._faults, key=lambda each: each.at):
            if later.kind in SERVER_KINDS and last < later.at <= last + PROMISE + SLACK:
                last = later.until or later.at
            elif later.kind in UNCLEAN and last < later.at <= last + PROMISE + SLACK:
                last = later.at
        return last

    def _recovery(self, fault: Fault, group: str) -> int:
        """How long the group was served until it had handled all that was published before the fault. ns."""
        times, done = self._progress[group]
        number = bisect.bisect_right(times, fault.at)
        return self._served(group, fault.at, done[number - 1]) if number else 0

    def _served(self, group: str, since: int, until: int) -> int:
        return max(0, until - since) - idle(self._unserved, group, since, until)
