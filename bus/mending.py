"""What is known of a group's waiting messages, put right where it does not fit together.

Retries, held messages and their states lie in three keys beside the stream, and are written together. A
replica that was behind, an older dump, or somebody with a console can leave them apart: messages that are
held with no failing one before them, a retry whose state is gone, what is no longer pending or not given out
yet. Whoever looks for left-overs in a lane puts that right first, in pages, and lets go what is held behind
nothing, in order.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from bus.complaints import Complaints
from bus.lane import Lane
from bus.streams.commands import Script, is_noscript, script
from bus.streams.connect import check
from bus.streams.wire import Argument

if TYPE_CHECKING:
    from bus.turn import Turns

#: Messages looked at in one script.
PAGE = 250
#: Keys that are let go in one turn: `turn.lua` releases up to 500 messages of them.
RELEASE = 50

_STAGES = ("retry", "held", "state")
_complaints = Complaints(logging.getLogger("bus.mending"))


def mend(turns: Turns, lane: Lane) -> None:
    """Put one lane right, whose lease has just been proven ours. Where nothing waits this costs nothing.

    Raises BusUnavailable, StaleLease (no lane is left), GroupLost.
    """
    lane.mended = True
    if not (lane.failures or lane.retrying or lane.held):
        return
    fixed, hashes = _put_right(turns, lane)
    if fixed and not lane.lost:
        turns.learn(lane)
    headless = sorted(hash_ for hash_ in hashes if not lane.failing.get(hash_))
    for start in range(0, len(headless), RELEASE):
        if lane.lost:
            return
        lane.release(headless[start : start + RELEASE])
        turns.settle()
    if fixed or headless:
        _complaints.say(
            (lane.id.topic, lane.id.group),
            "What waited in %s/%s for %s did not fit together, perhaps after a failover: %s records were put "
            "right, and messages of %s keys were let go that were held back behind nothing.",
            lane.id.topic, lane.id.partition, lane.id.group, fixed, len(headless),
        )  # fmt: skip


def _put_right(turns: Turns, lane: Lane) -> tuple[int, set[str]]:
    """How many records were put right, and the hashes of all keys that are held back."""
    fixed, hashes = 0, set[str]()
    for stage in _STAGES:
        go_on = b""
        while True:
            reply = _call(turns, lane, stage, go_on)
            if reply[0] == 0:
                lane.lost = True
                turns.drop([lane])
                return fixed, set()
            _, go_on, count, found = reply
            fixed += count
            hashes.update(raw.decode() for raw in found)
            if not go_on:
                break
    return fixed, hashes


def _call(turns: Turns, lane: Lane, stage: str, go_on: bytes) -> Any:
    keys, group = lane.keys, lane.id.group
    own = [
        keys.stream,
        keys.lease(group, lane.id.lane),
        keys.retry(group),
        keys.held(group),
        keys.state(group),
    ]
    about: list[Argument] = [lane.lease, group, lane.id.lane, lane.ordering, stage, go_on, PAGE]
    wanted: Script = script("mend")
    reply = turns.need_link().call(*wanted.by_sha(own, about))
    if is_noscript(reply):
        reply = turns.need_link().call(*wanted.by_text(own, about))
    return check(reply)
