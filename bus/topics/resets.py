"""Resets a group in one partition. If the process dies, the next one that meets the reset finishes it.

`begin` notes where the group is to go on, and fences its lanes, in one script. From then on nobody takes a
lane there, until what was pending is forgotten and the group has moved. Whoever meets a reset on its way
brings it to its end: the caller, a worker that wants the lane, upkeep before it trims.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bus.errors import BusError
from bus.format.lane_id import ORDERED_LANE
from bus.streams import commands
from bus.streams.commands import fields_of, is_nogroup, text
from bus.streams.connect import check

if TYPE_CHECKING:
    from bus.format.keys import PartitionKeys
    from bus.streams.connect import Client

#: Pending messages, or fields of the state, that one script forgets: about a millisecond for the server.
FORGOTTEN_AT_ONCE = 500
#: How often a reset is tried again because a lane came that nobody had counted on.
_ATTEMPTS = 10

Refusal = Literal["era", "position", "giving", "reset"]


@dataclass(frozen=True, slots=True)
class Begun:
    """What a group had in one partition when its reset began."""

    position: str
    """Id of the last message that it had been given."""
    pending: int
    retrying: int
    held: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a reset did not begin; nothing was changed."""

    why: Refusal
    """era, position: another one than was expected. giving: a lost group is being given back what waits.
    reset: another reset is on its way."""


def begin(
    client: Client,
    keys: PartitionKeys,
    group: str,
    *,
    to: str,
    read: int,
    era: str,
    new_era: str,
    position: str = "",
) -> Begun | Refused:
    """Begin the reset of a group in one partition; `finish` must follow.

    `to`: the id after which it is to go on. `read`: how many messages were ever added up to it. `era`: the
    one in which both were found. `new_era`: the one from then on. `position`: where the group must be; "" if
    it may be anywhere. Raises BusUnavailable, ForeignData, or ServerError (NOGROUP).
    """
    about = json.dumps({"to": to, "read": read, "era": new_era})
    for _ in range(_ATTEMPTS):
        consumers = client.pipe([("XINFO", "CONSUMERS", keys.stream, group)])[0]
        names = {text(fields_of(raw)["name"]) for raw in check(consumers)}
        lanes = sorted({ORDERED_LANE, *names})
        own = [keys.stream, keys.mark(group), keys.retry(group), keys.held(group), keys.state(group)]
        own += [keys.lease(group, lane) for lane in lanes]
        free = f"free:reset-{uuid.uuid4().hex}"
        done, *reply = commands.run(client, "reset", own, [group, free, about, position, era, *lanes])
        if done == 1:
            at, pending, retrying, held = reply
            return Begun(text(at), pending, retrying, held)
        why = text(reply[0])
        if why != "lane":
            return Refused(why)  # type: ignore[arg-type]  # the words of reset.lua
    raise BusError(f"Group {group!r} of {keys.stream} cannot be reset: lanes come and go all the time.")


def finish(client: Client, keys: PartitionKeys, group: str) -> None:
    """Bring a reset that is on its way to its end, if there is one. Raises BusUnavailable, ForeignData.

    Where the group is lost meanwhile nothing more is done: it is made again where the reset leads.
    """
    own = [keys.stream, keys.mark(group), keys.retry(group), keys.held(group), keys.state(group)]
    at = "0"
    while at:
        reply = commands.run_many(client, "reset_rest", [(own, [group, FORGOTTEN_AT_ONCE, at])])[0]
        if is_nogroup(reply):
            return
        at = text(check(reply))
