"""The reads at the beginning of a slice, and what their replies mean for its lanes.

Of a lane that it knows over its connection it asks the little that others may have changed; of another lane
all that waits there (see bus.consuming.waiting).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bus.consuming import waiting
from bus.consuming.blame import GroupGone, accept
from bus.consuming.lane import Lane
from bus.consuming.steps import Ask, Steps
from bus.errors import ServerError
from bus.streams.commands import script, text
from bus.streams.wire import Command, Link

#: How many commands `void_late_turns` has for a lane.
VOIDING = 2


def void_late_turns(lanes: Sequence[Lane]) -> list[Command]:
    """Return commands that void a turn of a broken connection, for lanes where left-overs are looked for.

    It may still be on its way, under the same lease, and nobody would see what it fetched. To write the lease
    anew voids its WATCH.
    """
    commands: list[Command] = []
    for lane in lanes:
        group, state = lane.id.group, lane.keys.state(lane.id.group)
        commands += [
            script("lease").by_text(
                [lane.keys.lease(group, lane.id.lane), lane.keys.stream, state],
                [lane.lease, lane.lease, group, lane.id.lane, ""],
            ),
            # What is gone from ahead of the group is seen best before it reads on.
            script("lost").by_text([lane.keys.stream, state], ["?", group]),
        ]
    return commands


def reads(lanes: Sequence[Lane]) -> list[Command]:
    """Return the commands that read what is not known yet of these lanes; `take_in` takes their replies."""
    commands: list[Command] = []
    for lane in lanes:
        if lane.link is None:
            commands += waiting.first(lane.keys, lane.id.group)
        else:
            # Between two slices an operator may have given dead letters back (see redrive.lua), and the
            # stream may have gone and been made again (see ensure.lua).
            commands += [("ZRANGE", lane.keys.retry(lane.id.group), 0, 0, "WITHSCORES"), _era(lane)]
        if lane.last_id is None:
            commands.append(("XINFO", "GROUPS", lane.keys.stream))
    return commands


def take_in(lanes: Sequence[Lane], replies: Sequence[Any], link: Link) -> Steps[None]:
    """Take in the replies to `reads`, which came over `link`.

    Marks lanes with foreign data as lost. Raises GroupGone, also where the server's data are older than what
    was settled; other errors of the server.
    """
    rest = iter(replies)
    for lane in lanes:
        is_new = lane.link is None
        of_lane = [next(rest) for _ in range(waiting.REPLIES if is_new else 2)]
        groups = [next(rest)] if lane.last_id is None else []
        if not (yield from accept(lane, [*of_lane, *groups])):
            continue
        if is_new:
            all_waiting = yield from waiting.rest(lane.keys, lane.id.group, of_lane)
            if isinstance(all_waiting, ServerError):
                yield from accept(lane, [all_waiting])  # raises what is not of this lane alone
                continue
            lane.load(all_waiting)
        else:
            lane.learn_next_due(of_lane[0])
            lane.learn_era_and_ordering(of_lane[1])
        lane.link = link
        if groups and not lane.learn_position(_last_delivered(groups[0], lane.id.group)):
            raise GroupGone(
                f"The server knows group {lane.id.group!r} of {lane.keys.stream} at {lane.last_id}, "
                f"but it was at {lane.seen}: its data are older than what was settled."
            )


def read_eras(lanes: Sequence[Lane]) -> Steps[None]:
    """Read the eras anew (which messages the ids mean): a lease was touched, perhaps by ensure.lua."""
    replies = yield Ask([_era(lane) for lane in lanes])
    for lane, raw in zip(lanes, replies, strict=True):
        if (yield from accept(lane, [raw])):
            lane.learn_era_and_ordering(raw)


def _era(lane: Lane) -> Command:
    return ("HMGET", lane.keys.state(lane.id.group), "era", "ordering")


def _last_delivered(groups: Any, name: str) -> str:
    for group in groups:
        fields = dict(zip(group[::2], group[1::2], strict=True))
        if text(fields[b"name"]) == name:
            return text(fields[b"last-delivered-id"])
    raise GroupGone(f"NOGROUP No such consumer group {name!r}")
