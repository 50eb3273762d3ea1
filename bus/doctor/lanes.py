"""Checks of workers and leases: can all records be read, and has every lane an owner?"""

from __future__ import annotations

from collections.abc import Iterator

from bus.client import Bus
from bus.doctor.finding import Finding
from bus.errors import ServerError
from bus.format import lease as leases
from bus.format.lane_id import LaneId
from bus.format.worker_record import WorkerRecord, read_table, where
from bus.observe import members, unheld
from bus.observe.facts import ask, is_absent
from bus.safety.unreadable import Unreadable, shown
from bus.streams.connect import check
from bus.streams.wire import Command

#: Lanes or records named in one text.
_NAMED = 5


def examine(bus: Bus) -> Iterator[Finding]:
    """One finding for each kind of trouble, or one that says that there is none."""
    key, reply = bus.keys.workers, bus.client.pipe([("HGETALL", bus.keys.workers)])[0]
    if isinstance(reply, ServerError) and is_absent(reply):
        text = f"The key {key}, where workers sign in, holds something else: no worker can consume."
        yield Finding("error", "workers", text, f"Run DEL {key}; workers make it again.")
        return
    table = read_table(key, check(reply))
    lanes = list(bus.registry.tables().homes())
    keys = [bus.keys.partition(lane.topic, lane.partition).lease(lane.group, lane.lane) for lane in lanes]
    commands: list[Command] = [("GET", key) for key in keys]
    read = dict(zip(lanes, ask(bus.client, commands), strict=True))
    strange = [
        found for lane, key in zip(lanes, keys, strict=True) if (found := _unreadable(key, read[lane]))
    ]
    lost = _unheld(table.records, {lane: reply for lane, reply in read.items() if not is_absent(reply)})
    yield from _records(key, table.unreadable)
    yield from _leases(strange)
    if lost:
        text = f"Lanes that nobody has held for 10 s or more, though workers serve them: {_some(lost)}."
        hint = "Look into the logs of these workers; restart those that say why they cannot take lanes."
        yield Finding("error", "lanes", text, hint)
    if not (table.unreadable or strange or lost):
        text = (
            f"{len(table.records):,} workers are signed in; every lane that one of them serves has an owner."
        )
        yield Finding("ok", "lanes", text)


def _unreadable(key: str, reply: object) -> Unreadable | None:
    if isinstance(reply, ServerError):
        return Unreadable(key, "", "something", "is of another type") if is_absent(reply) else None
    if reply is None or leases.is_readable(leases.read(check(reply))):
        return None
    return Unreadable(key, "", shown(check(reply)), "is no lease")


def _unheld(records: dict[str, WorkerRecord], read: dict[LaneId, bytes | None]) -> list[str]:
    suspected = unheld.suspected(records.values())
    return [
        where(lane)
        for lane, raw in read.items()
        if lane in suspected and not unheld.is_held(members.holder(check(raw)), records)
    ]


def _records(key: str, found: tuple[Unreadable, ...]) -> Iterator[Finding]:
    if found:
        text = f"Records of workers that cannot be read, and are passed over: {_some(list(map(str, found)))}."
        hint = f"If no newer Jitney runs here, remove them: HDEL {key} and the name of the field."
        yield Finding("warning", "workers", text, hint)


def _leases(found: list[Unreadable]) -> Iterator[Finding]:
    if found:
        text = f"Leases that cannot be read: {_some(list(map(str, found)))}."
        hint = "Workers that serve the group take these lanes over within seconds; otherwise DEL the keys."
        yield Finding("warning", "leases", text, hint)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
