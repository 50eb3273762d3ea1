"""Checks whether the records of workers and leases can be read, and every lane has an owner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bus.client import Bus
from bus.doctor.finding import Finding, some
from bus.errors import ServerError
from bus.format import lease as leases
from bus.format.lane_id import LaneId
from bus.format.worker_record import where
from bus.observe import Survey
from bus.observe.facts import is_missing
from bus.safety.unreadable import Unreadable, shown
from bus.streams.connect import check


def examine(bus: Bus, survey: Survey) -> Iterator[Finding]:
    """Yield one finding for each kind of trouble, or one that says that there is none."""
    key, table = bus.keys.workers, survey.table
    if table is None:
        text = f"The key {key}, where workers sign in, holds something else: no worker can consume."
        yield Finding("error", "workers", text, f"Run DEL {key}; workers make it again.")
        return
    strange = [
        lease for lane, reply in survey.leases.items() if (lease := _unreadable(_lease_key(bus, lane), reply))
    ]
    unheld = [
        where(LaneId(share.topic, share.partition, share.group))
        for shares in survey.shares.values()
        for share in shares
        if share.unheld and not is_missing(survey.leases[LaneId(share.topic, share.partition, share.group)])
    ]
    yield from _records(key, table.unreadable)
    yield from _leases(strange)
    if unheld:
        text = f"Lanes that nobody has held for 10 s or more, though workers serve them: {some(unheld)}."
        hint = "Look into the logs of these workers; restart those that say why they cannot take lanes."
        yield Finding("error", "lanes", text, hint)
    if not (table.unreadable or strange or unheld):
        text = (
            f"{len(table.records):,} workers are signed in; every lane that one of them serves has an owner."
        )
        yield Finding("ok", "lanes", text)


def _unreadable(key: str, reply: object) -> Unreadable | None:
    if isinstance(reply, ServerError):
        return Unreadable(key, "", "something", "is of another type") if is_missing(reply) else None
    if reply is None or leases.is_readable(leases.read(check(reply))):
        return None
    return Unreadable(key, "", shown(check(reply)), "is no lease")


def _lease_key(bus: Bus, lane: LaneId) -> str:
    return bus.keys.partition(lane.topic, lane.partition).lease(lane.group, lane.lane)


def _records(key: str, records: Sequence[Unreadable]) -> Iterator[Finding]:
    if records:
        text = f"Records of workers that cannot be read, and are passed over: {some([*map(str, records)])}."
        hint = f"If no newer Jitney runs here, remove them: HDEL {key} and the name of the field."
        yield Finding("warning", "workers", text, hint)


def _leases(leases: Sequence[Unreadable]) -> Iterator[Finding]:
    if leases:
        text = f"Leases that cannot be read: {some([*map(str, leases)])}."
        hint = "Workers that serve the group take these lanes over within seconds; otherwise DEL the keys."
        yield Finding("warning", "leases", text, hint)
