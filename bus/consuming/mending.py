"""Repairs retries, held messages and records of a group where they contradict each other.

Retries, held messages and their states lie in three keys beside the stream, and are written together. A
replica that was behind, an older dump, or somebody with a console can leave them apart: held messages with no
failing one before them, a retry whose state is gone, what is no longer pending or not given out yet.

Whoever looks for left-overs in a lane puts that right first, in pages. Of each key first come those that
fail, then those that are held back. What is held behind nothing is let go, in order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from bus.consuming.lane import Lane
from bus.safety.complaints import Complaints
from bus.streams.commands import Script, is_noscript, script
from bus.streams.connect import check
from bus.streams.wire import Argument, Link
from bus.values import id_pair

#: Messages looked at in one script.
MESSAGES_A_SCRIPT = 200
#: Keys that are let go in one turn: `turn.lua` releases up to 150 messages of them.
RELEASE = 50

_complaints = Complaints(logging.getLogger("bus.mending"))


class Settler(Protocol):
    """The part of a slice's turns that mending needs (see bus.consuming.turn.Turns)."""

    def need_link(self) -> Link: ...
    def learn(self, *lanes: Lane) -> None: ...
    def settle(self) -> None: ...
    def drop(self, lost: Iterable[Lane]) -> None: ...


def mend(turns: Settler, lanes: Iterable[Lane]) -> None:
    """Put lanes right, whose leases have just been proven ours.

    If nothing waits, this costs nothing; else one round trip for all lanes. (A slice that needs many would
    never begin on a line that breaks all the time.) Raises BusUnavailable, StaleLease (no lane is left),
    GroupGone.
    """
    waiting = []
    for lane in lanes:
        lane.mended = True
        if lane.failures or lane.retrying or lane.held:
            waiting.append(lane)
    for lane, reply in zip(waiting, _first_pages(turns, waiting), strict=True):
        _mend(turns, lane, reply)


def _first_pages(turns: Settler, lanes: Sequence[Lane]) -> list[Any]:
    if not lanes:
        return []
    mend_script: Script = script("mend")
    replies = turns.need_link().pipe([mend_script.by_sha(*_about(lane)) for lane in lanes])
    if any(is_noscript(reply) for reply in replies):
        replies = turns.need_link().pipe([mend_script.by_text(*_about(lane)) for lane in lanes])
    return replies


def _mend(turns: Settler, lane: Lane, first: Any) -> None:
    fixed, firsts = _put_right(turns, lane, first)
    if fixed and not lane.lost:
        turns.learn(lane)
    tangled = sorted(hash_ for hash_, place in firsts.items() if not lane.fails_before(hash_, place))
    for start in range(0, len(tangled), RELEASE):
        if lane.lost:
            return
        for hash_ in tangled[start : start + RELEASE]:
            lane.untangle(hash_, firsts[hash_])
        turns.settle()
    if fixed or tangled:
        _complaints.say(
            (lane.id.topic, lane.id.group),
            "What waited in %s/%s for %s did not fit together, perhaps after a failover: %s records were put "
            "right, and the order in which messages of %s keys wait.",
            lane.id.topic, lane.id.partition, lane.id.group, fixed, len(tangled),
        )  # fmt: skip


def _put_right(turns: Settler, lane: Lane, reply: Any) -> tuple[int, dict[str, tuple[int, int]]]:
    """Return how many records were put right, and the first message that is held back, by key hash.

    `reply`: to the first page.
    """
    fixed = 0
    firsts: dict[str, tuple[int, int]] = {}
    while True:
        if check(reply)[0] == 0:
            lane.lose()
            turns.drop([lane])
            return fixed, {}
        _, stage, go_on, count, members = reply
        fixed += count
        for member in members:
            hash_, padded = member.decode().rsplit(":", 1)
            place = id_pair(padded)
            firsts[hash_] = min(firsts.get(hash_, place), place)
        if not stage:
            return fixed, firsts
        reply = turns.need_link().call(*script("mend").by_text(*_about(lane, stage, go_on)))


def _about(lane: Lane, stage: bytes = b"retry", go_on: bytes = b"") -> tuple[list[str], list[Argument]]:
    """Return the keys and arguments of a page."""
    keys, group = lane.keys, lane.id.group
    own = [
        keys.stream,
        keys.lease(group, lane.id.lane),
        keys.retry(group),
        keys.held(group),
        keys.state(group),
    ]
    about: list[Argument] = [lane.lease, group, lane.id.lane, lane.ordering, stage, go_on, MESSAGES_A_SCRIPT]
    return own, about
