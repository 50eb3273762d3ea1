"""The three scripts of a turn, as commands for one lane: turn.lua settles, recover.lua and due.lua fetch."""

from __future__ import annotations

from bus.consuming.lane import Lane
from bus.streams.commands import script
from bus.streams.wire import Argument, Command


def settle(
    lane: Lane, outcomes: bytes, dead_limit: int, *, mark: str = "", fetch: int = 0, by_text: bool = False
) -> Command:
    """Return the command that settles outcomes (see Outcomes.dump) in this lane.

    `dead_limit`: dead letters that the group keeps. `mark`: the new mark; "" leaves it as it is. `fetch`: how
    many new messages to fetch. `by_text`: the server does not know the script, or may not know it.
    """
    keys, group = lane.keys, lane.id.group
    own = [
        keys.stream, keys.lease(group, lane.id.lane), keys.retry(group), keys.held(group), keys.state(group),
        keys.dead(group), keys.mark(group),
    ]  # fmt: skip
    args: list[Argument] = [lane.lease, group, lane.id.lane, fetch, dead_limit, outcomes, mark]
    return _command("turn", own, args, by_text)


def recover(lane: Lane, count: int, *, by_text: bool = False) -> Command:
    """Return the command that fetches at most `count` left-overs, from where the lane has got to."""
    keys, group = lane.keys, lane.id.group
    own = [
        keys.stream, keys.lease(group, lane.id.lane), keys.retry(group), keys.held(group), keys.state(group)
    ]  # fmt: skip
    most = 1 if lane.suspect else count
    args: list[Argument] = [lane.lease, group, lane.id.lane, lane.position, most, lane.ordering]
    return _command("recover", own, args, by_text)


def due(lane: Lane, count: int, *, by_text: bool = False) -> Command:
    """Return the command that fetches at most `count` retries that are due."""
    keys, group = lane.keys, lane.id.group
    own = [keys.stream, keys.lease(group, lane.id.lane), keys.retry(group), keys.state(group)]
    claims = "1" if lane.ordering == "none" else "0"
    args: list[Argument] = [lane.lease, group, lane.id.lane, 1 if lane.suspect else count, claims]
    return _command("due", own, args, by_text)


def _command(name: str, keys: list[str], args: list[Argument], by_text: bool) -> Command:
    its_script = script(name)
    return its_script.by_text(keys, args) if by_text else its_script.by_sha(keys, args)
