"""The fence: what keeps a worker that has lost a lease from settling or fetching anything there.

It is Redis's own optimistic lock. Each turn WATCHes the leases of its lanes and reads them. If a lease has
changed when the next turn comes, the server executes nothing of its MULTI. So a worker that was frozen and
comes back can neither acknowledge nor fetch. The scripts (turn.lua, recover.lua, due.lua) compare the lease
themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bus.consuming.lane import Lane
from bus.errors import ServerError
from bus.streams.connect import error_of
from bus.streams.wire import Command


def watch(lanes: Sequence[Lane]) -> Command:
    """Return the command after which no MULTI is executed if one of these leases changes."""
    return ("WATCH", *[lane.keys.lease(lane.id.group, lane.id.lane) for lane in lanes])


def read(lanes: Sequence[Lane]) -> Command:
    """Return the command whose reply `prove` takes."""
    return ("MGET", *[lane.keys.lease(lane.id.group, lane.id.lane) for lane in lanes])


def prove(lanes: Sequence[Lane], leases: Any) -> None:
    """Mark the lanes whose leases are not ours as lost. `leases`: the reply to `read`, of the same lanes."""
    if isinstance(leases, ServerError):
        raise error_of(leases)
    for lane, lease in zip(lanes, leases, strict=True):
        lane.lost = lane.trouble is not None or lease is None or lease != lane.lease.encode()
