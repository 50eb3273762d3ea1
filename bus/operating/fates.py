"""Retries and discards dead letters; each has a fate.

`bus.operating.operate` adds the audit to the verbs here.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import orjson

from bus.format import strangers
from bus.format.lane_id import ORDERED_LANE
from bus.format.letter import DeadLetter, Origin
from bus.operating.deadletters import Selection, ordering_of
from bus.safety.verbs import verb
from bus.streams.commands import fields_of, is_nogroup, run, text
from bus.streams.connect import check
from bus.topics.reordering import GroupPartition, in_effect

if TYPE_CHECKING:
    from bus.client import Bus

#: Letters that one script gives back: a few milliseconds of the server's time.
LETTERS_A_SCRIPT = 100
#: Letters of one partition that are retried or discarded at a time, and that share an audit record.
LETTERS_A_RECORD = 1000

#: The code of redrive.lua for a letter that it has not reached: it takes only a few large ones at a time.
_LATER = -2
#: More slots than this are not believed of one worker.
_MAX_SLOTS = 1000


@dataclass(frozen=True, slots=True)
class LetterRef:
    """What is known of a letter while it is retried or discarded: never its value."""

    place: Origin
    message_id: str
    reason: str


class Fate(Enum):
    """The fate of a dead letter that was to be retried or discarded."""

    WAITING = 1
    """Its message waits for the group again."""
    COPIED = 2
    """Its message was trimmed, so the letter's copy was added to the topic, for this group alone."""
    DISCARDED = 3
    GONE = 0
    """The letter is not there any more: another operator was faster, or DEAD_LIMIT dropped it."""
    KEPT = -1
    """It is still a dead letter: the stream or the group is gone, or there is no copy of the message."""


@dataclass(slots=True)
class Tally:
    """Counts of letters by their fates."""

    waiting: int = 0
    copied: int = 0
    discarded: int = 0
    gone: int = 0
    kept: int = 0

    def add_all(self, fates: Iterable[Fate]) -> None:
        for fate in fates:
            name = fate.name.lower()
            setattr(self, name, getattr(self, name) + 1)

    def with_missing(self, selection: Selection) -> Tally:
        """Count as gone the letters that the selection names and that were not found; return the tally."""
        if selection.places is not None:
            self.gone += len(set(selection.places)) - self.total
        return self

    @property
    def retried(self) -> int:
        return self.waiting + self.copied

    @property
    def total(self) -> int:
        return self.waiting + self.copied + self.discarded + self.gone + self.kept


def batches(letters: Iterable[DeadLetter]) -> Iterator[list[LetterRef]]:
    """Yield letters as they are to be dealt with: at most LETTERS_A_RECORD at a time, of one partition."""
    batch: list[LetterRef] = []
    for letter in letters:
        if batch and (len(batch) == LETTERS_A_RECORD or batch[0].place.partition != letter.place.partition):
            yield batch
            batch = []
        batch.append(LetterRef(letter.place, letter.message.id, letter.reason))
    if batch:
        yield batch


@verb("retry dead letters")
def retry(bus: Bus, topic: str, group: str, letters: Sequence[LetterRef]) -> list[Fate]:
    """Give letters of one partition back to their group alone; return the fate of each.

    One script makes the message wait again and then removes the letter. So a crash leaves it in exactly one
    place, and of several who retry it only one does. Raises BusUnavailable or ReplyLost; then some may have
    been retried, and the same call again counts them as gone.
    """
    if not letters:
        return []
    keys = bus.keys.partition(topic, letters[0].place.partition)
    ordering = ordering_of(bus, topic, group)
    if ordering is None:
        return [Fate.KEPT] * len(letters)  # nobody would ever be given them
    ordering = in_effect(bus, GroupPartition(topic, group, letters[0].place.partition), ordering)
    lanes = _lanes(bus, keys.stream, group) if ordering == "none" else [ORDERED_LANE]
    names = [keys.stream, keys.retry(group), keys.held(group), keys.state(group), keys.dead(group),
             *(keys.lease(group, lane) for lane in lanes)]  # fmt: skip
    fates: dict[str, Fate] = {}
    left = [letter.place.id for letter in letters]
    while left:  # one script in a write: between two of them the server has time for others
        about = [group, ordering, f"free:operator-{uuid.uuid4().hex}", str(len(lanes)), *lanes]
        ids, left = left[:LETTERS_A_SCRIPT], left[LETTERS_A_SCRIPT:]
        codes = run(bus.client, "redrive", names, [*about, *ids])
        fates |= {id: Fate(code) for id, code in zip(ids, codes, strict=True) if code != _LATER}
        left[:0] = [id for id, code in zip(ids, codes, strict=True) if code == _LATER]
    bus.registry.hint("release")  # workers take freed lanes again at once, and see what waits there
    return [fates[letter.place.id] for letter in letters]


@verb("discard dead letters")
def discard(bus: Bus, topic: str, group: str, letters: Sequence[LetterRef]) -> list[Fate]:
    """Remove letters of one partition for good; return the fate of each. Works while memory is full.

    Raises BusUnavailable or ReplyLost, as `retry`.
    """
    commands = [
        ("XDEL", bus.keys.partition(topic, letter.place.partition).dead(group), letter.place.id)
        for letter in letters
    ]
    return [Fate.DISCARDED if check(reply) else Fate.GONE for reply in bus.client.pipe(commands)]


def _lanes(bus: Bus, stream: str, group: str) -> list[str]:
    """Return the lanes that an unordered group may have here: one for each pool slot, idle or not.

    Redis 7.0 knows a lane only once it was given something, and a pool may have grown since it started.
    """
    table, consumers = bus.client.pipe([("HGETALL", bus.keys.workers), ("XINFO", "CONSUMERS", stream, group)])
    lanes = {
        f"{incarnation}.{slot}"
        for incarnation, raw in fields_of(
            [] if strangers.stands_at(bus.keys.workers, table) else check(table)
        ).items()
        for slot in range(_processes(raw))
    }
    if not is_nogroup(consumers):
        lanes.update(text(fields_of(raw)["name"]) for raw in check(consumers))
    return sorted(lanes)


def _processes(raw: bytes) -> int:
    """Return how many slots a worker says that it has; 0 if its record cannot be read."""
    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return 0
    processes = record.get("processes") if isinstance(record, dict) else None
    return max(0, min(processes, _MAX_SLOTS)) if type(processes) is int else 0
