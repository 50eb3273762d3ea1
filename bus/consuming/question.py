"""Plans one turn: makes the Redis commands from lanes and settings, and changes no lane.

    EVALSHA turn.lua …                                            outcomes other than "done"
    MULTI · XACK … · SET marks · XREADGROUP · EXEC                what is done; marks; new messages
    WATCH leases · MGET leases                                    the fence of the next turn
    EVALSHA recover.lua … · EVALSHA due.lua …                     left-overs; retries that are due

All in one write. `bus.consuming.answer` knows what the replies mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bus.consuming import calls, fence
from bus.consuming.asked import Asked
from bus.consuming.lane import Lane
from bus.consuming.portions import portions
from bus.consuming.sizes import MOST_BYTES
from bus.streams.wire import Command

#: Left-overs and due retries asked for in one turn, at most. (The scripts stop sooner where these are large.)
WAITING_A_TURN = 500


def question(
    lanes: Sequence[Lane],
    *,
    fetch_from: Sequence[Lane],
    count: int,
    now: int,
    held_limit: int,
    dead_limit: int,
    drain_only: bool = False,
    marking: bool = True,
) -> Asked:
    """Return what a turn asks: to settle all that these lanes keep, and to fetch about `count` messages.

    `fetch_from`: those of the lanes that may fetch now. `count`: 0 only settles. `now`: ms, by the server's
    clock. `drain_only`: fetch nothing new and nothing that is due. `marking`: whether marks may be written.
    """
    marks = {lane: lane.new_mark() for lane in lanes} if count and marking else {}
    parts = [(lane, [*portions(lane.outcomes)]) for lane in lanes if lane.outcomes]
    fetching = fetch_from if count else ()
    flowing = [] if drain_only else [lane for lane in fetching if not lane.recovering]
    due = [lane for lane in flowing if lane.next_due is not None and lane.next_due <= now]
    reading = [lane for lane in flowing if lane not in due and lane.may_fetch(held_limit)]
    for_each = max(1, count // max(1, len(fetching)))
    acking = [lane for lane in lanes if lane.acks]
    return Asked(
        lanes=lanes,
        first_portions=[(lane, part) for lane, of_lane in parts for part in of_lane[:-1]],
        last_portions=[(lane, of_lane[-1]) for lane, of_lane in parts],
        acking=acking,
        marks={lane: mark for lane, mark in marks.items() if mark is not None},
        marking=marking,
        reading=reading,
        recovering=[lane for lane in fetching if lane.recovering],
        due=due,
        most_new=for_each,
        most_waiting=min(WAITING_A_TURN, max(1, count)),
        dead_limit=dead_limit,
        # One message must come whole, however long it is, or it would never come.
        most_bytes=MOST_BYTES if len(reading) * for_each > 1 else math.inf,
        has_multi=bool(acking or reading),
    )


def commands(asked: Asked) -> list[Command]:
    """Return the commands of a turn, but for the first portions, which have gone before."""
    all_commands = [
        calls.settle(lane, part.dump(), asked.dead_limit, mark=asked.marks.get(lane, ""))
        for lane, part in asked.last_portions
    ]
    if asked.has_multi:
        all_commands.append(("MULTI",))
        all_commands += [("XACK", lane.keys.stream, lane.id.group, *lane.acks) for lane in asked.acking]
        all_commands += [("SET", lane.keys.mark(lane.id.group), mark) for lane, mark in asked.marks.items()]
        if asked.reading:
            all_commands.append(_read(asked.reading, asked.most_new))
        all_commands += [("EXEC",), fence.watch(asked.lanes), fence.read(asked.lanes)]
    all_commands += [calls.recover(lane, asked.most_waiting) for lane in asked.recovering]
    all_commands += [calls.due(lane, asked.most_waiting) for lane in asked.due]
    return all_commands


def _read(lanes: Sequence[Lane], count: int) -> Command:
    first = lanes[0].id
    streams = [lane.keys.stream for lane in lanes]
    return ("XREADGROUP", "GROUP", first.group, first.lane, "COUNT", count, "STREAMS",
            *streams, *([">"] * len(streams)))  # fmt: skip
