"""Deletes rows of inboxes that nobody needs any more, after it has raised the floor that replaces them.

A floor (see bus.transactions.floor) says: each message of the place up to this id is *settled for good*, but
for those that are *open*. Nothing that is settled for good may be handled again, whoever has it in hand and
whatever Redis says later. Open is what is pending (it runs, waits for a retry, or is held back), and what is
a dead letter, since an operator may retry it. Its row, if it has one, is kept: then its effect is there
already.

In this order, so that a frozen owner meets either the row or the floor:

1. Floor and open messages are written, in a transaction of its own.
2. Rows at or below the floor that are not open are deleted.

What is settled for good stays so: open messages are only added above the old floor. The floor goes up to the
*copied* mark (see bus.transactions.marks) at most, where groups go on from if the server comes back with
older data; and only if the server has given out all of that: one that has lost data has not. A look at the
pending list counts only if no message has become a dead letter since the letters were read. Whoever was
frozen between look and writing finds the floor's version changed, or writes what is still so.

Where the era is over, floor and open messages go when their messages are a day old, and after them the
rows: if a Redis that came up empty is replaced by a backup, its eras are back.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction
from django.db.models import F, Q

from bus.databases import distinct
from bus.format.state import read_era
from bus.format.strangers import stands_at
from bus.streams.commands import run, text
from bus.streams.connect import check
from bus.transactions.marks import MarkRef
from bus.values import id_pair, known_id

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.models import InboxFloor

#: Rows that one statement reads, writes or deletes.
ROWS_A_STATEMENT = 500
#: Pending ids that one script returns.
PENDING_A_SCRIPT = 500
#: Dead letters that one script looks at, and bytes of them that are enough for it.
LETTERS_A_SCRIPT, LETTER_BYTES_A_SCRIPT = 100, 256 * 1024
#: How long one call of `forget` goes on. Seconds.
FORGET_SECONDS = 5.0
#: How long what is known of an era that is over is kept, by the ids of its messages. Milliseconds.
OLD_ERA_MS = 24 * 3600 * 1000

_Pair = tuple[int, int]
_Place = tuple[str, str, int, str]
"""Group, topic, partition, era."""
_NEVER: _Pair = (0, 0)


def forget(bus: Bus, alias: str) -> int:
    """Raise the floors of a database and delete the rows that they stand for; return how many rows.

    Two at once do no harm. Raises BusError, or the database's errors.
    """
    from bus.models import (
        InboxFloor,
        InboxRow,
        MarkCopy,
    )  # a worker imports this before Django's apps are ready

    rows = InboxRow._default_manager.using(alias)
    floors = InboxFloor._default_manager.using(alias)
    # In this order: rows, then what Redis says of their places.
    busy: set[_Place] = set(distinct(rows, "group", "topic", "partition", "era"))
    waiting = floors.filter(inboxopen__isnull=False).distinct()
    busy.update(waiting.values_list("group", "topic", "partition", "era"))
    with_floor: set[_Place] = set(floors.values_list("group", "topic", "partition", "era"))
    places = busy | with_floor
    if not places:
        return 0
    parts = sorted({place[:3] for place in places})
    eras = bus.client.pipe(
        [("HGET", bus.keys.partition(topic, number).state(group), "era") for group, topic, number in parts]
    )
    current = {part: _era(bus, part, era) for part, era in zip(parts, eras, strict=True)}
    look = bus.registry.look()
    born = {(group.name, group.topic): group.born for group in look.groups}
    unknown = {record.field for record in look.unreadable if record.key == bus.keys.groups}
    copies = {
        (MarkRef(row.topic, row.partition, row.group, row.born), row.era): id_pair(row.position)
        for row in MarkCopy.objects.filter(prefix=bus.settings.prefix)
        if known_id(row.position)
    }
    deleted, ends = 0, time.monotonic() + FORGET_SECONDS
    for place in random.sample(sorted(places), len(places)):
        if time.monotonic() > ends:
            break  # the rest comes next time; in any order, so that nothing is always last
        group, topic, number, era = place
        if current[group, topic, number] is None or unknown & {"", f"{topic}/{group}"}:
            continue  # what cannot be read does not say that anything is over
        declared = (group, topic) in born
        if declared and era == current[group, topic, number]:
            mark = copies.get((MarkRef(topic, number, group, born[group, topic]), era))
            if mark is not None and place in busy:
                deleted += _Forgetting(bus, alias, place, ends).forget(mark)
        elif era.startswith(f"{bus.settings.prefix}:") or (declared and not era):
            deleted += _forget_era(alias, place)
    return deleted


def _era(bus: Bus, part: tuple[str, str, int], reply: Any) -> str | None:
    """Return the era of a group in a partition now; None if that cannot be read."""
    group, topic, number = part
    key = bus.keys.partition(topic, number).state(group)
    era = None if stands_at(key, reply) else read_era(key, check(reply))
    return era if isinstance(era, str) else None


def _forget_era(alias: str, place: _Place) -> int:
    """Delete what is a day old of an era that is over; return how many rows.

    Whoever is frozen in that era inserts its row, and then finds the floor, or none.
    """
    from bus.models import InboxFloor, InboxOpen, InboxRow

    rows, oldest = _of(InboxRow, alias, place), int(time.time() * 1000) - OLD_ERA_MS
    old = rows.filter(ms__lt=oldest)
    floors = _of(InboxFloor, alias, place)
    floor = floors.first()
    if floor is not None and floor.ms < oldest:
        if old.exists() or not rows.exists():
            floors.delete()
    elif floor is not None and (handled := set(old.values_list("ms", "seq"))):
        # They lie below the floor, so they are open; and handled, as their rows say.
        opens = InboxOpen._default_manager.using(alias).filter(floor=floor)
        with transaction.atomic(using=alias):
            floors.update(version=F("version") + 1)
            old_opens = opens.filter(ms__lt=oldest).values_list("pk", "ms", "seq")
            _delete(opens, [pk for pk, *pair in old_opens if tuple(pair) in handled])
    return int(old.delete()[0])


def _of(model: Any, alias: str, place: _Place) -> Any:
    group, topic, number, era = place
    rows = model._default_manager.using(alias)
    return rows.filter(group=group, topic=topic, partition=number, era=era)


@dataclass(slots=True)
class _Look:
    """What Redis says of a place: its dead letters and pending messages."""

    letters: dict[_Pair, _Pair]
    """Dead letter → its message."""
    count: int = 0
    """How many letters there were."""
    last: _Pair = _NEVER
    """The last id that a letter was given."""
    pending: set[_Pair] = field(default_factory=set)


class _Forgetting:
    """Raises the floor of one place and deletes its rows."""

    def __init__(self, bus: Bus, alias: str, place: _Place, ends: float) -> None:
        self._bus = bus
        self._alias = alias
        self._place = place
        self._ends = ends
        group, topic, number, self._era = place
        self._group = group
        self._keys = bus.keys.partition(topic, number)

    def forget(self, mark: _Pair) -> int:
        """Raise the floor to the mark, and delete the rows up to it that are not open; return how many."""
        raised = self._raise_floor(mark)
        return 0 if raised is None else self._delete_rows(*raised)

    # ------------------------------------------------------------------ the floor

    def _raise_floor(self, mark: _Pair) -> tuple[_Pair, set[_Pair]] | None:
        """Return the raised floor in the database, and the open messages; None: not this time."""
        from bus.models import InboxOpen

        floor = self._floor()
        before = (floor.ms, floor.seq)
        opens = InboxOpen._default_manager.using(self._alias).filter(floor=floor)
        old: set[tuple[int, ...]] = set(opens.values_list("ms", "seq", "letter_ms", "letter_seq"))
        target = max(before, mark)
        look = self._look(floor, target, old)
        if look is None:
            return None
        still_open = {entry[:2] for entry in old}
        new: set[tuple[int, ...]] = {
            (*message, *letter)
            for letter, message in look.letters.items()
            if message > before or message in still_open
        }
        new |= {(*pair, *_NEVER) for pair in look.pending if before < pair <= target or pair in still_open}
        state = (*target, *look.last, len(look.letters))
        if (new, state) != (old, (*before, floor.letter_ms, floor.letter_seq, floor.letters)) and not (
            self._write(floor, state, old - new, new - old)
        ):
            return None
        return target, {(entry[0], entry[1]) for entry in new}

    def _floor(self) -> InboxFloor:
        from bus.models import InboxFloor

        group, topic, number, era = self._place
        floor, _ = InboxFloor._default_manager.using(self._alias).get_or_create(
            group=group, topic=topic, partition=number, era=era
        )
        return floor

    def _write(
        self, floor: InboxFloor, state: tuple[int, ...], gone: set[tuple[int, ...]], new: set[tuple[int, ...]]
    ) -> bool:
        """Write the floor and its open messages; return whether it was written.

        It is not if somebody else has written it meanwhile, or a handler's transaction has locked it.
        """
        from bus.models import InboxFloor, InboxOpen

        names = ("ms", "seq", "letter_ms", "letter_seq")
        floors = InboxFloor._default_manager.using(self._alias).filter(pk=floor.pk, version=floor.version)
        opens = InboxOpen._default_manager.using(self._alias)
        with transaction.atomic(using=self._alias):
            if connections[self._alias].features.has_select_for_update_skip_locked and not list(
                floors.select_for_update(skip_locked=True).values_list("pk")
            ):
                return False
            values = dict(zip((*names, "letters"), state, strict=True))
            if not floors.update(version=floor.version + 1, **values):
                return False
            if gone:
                every = opens.filter(floor=floor).values_list("pk", *names)
                _delete(opens, [pk for pk, *entry in every if tuple(entry) in gone])
            opens.bulk_create(
                [InboxOpen(floor=floor, **dict(zip(names, entry, strict=True))) for entry in new],
                batch_size=ROWS_A_STATEMENT,
            )
        return True

    # ------------------------------------------------------------------ what Redis says

    def _look(self, floor: InboxFloor, target: _Pair, old: set[tuple[int, ...]]) -> _Look | None:
        """Look at letters and pending messages; None if the look is worth nothing.

        That is so if the server has older data, a message has died meanwhile, or the time is over.
        """
        look = self._letters(floor, old)
        if look is None:
            return None
        highest = max([target, *((entry[0], entry[1]) for entry in old)])
        start = "-"
        while True:
            if time.monotonic() > self._ends:
                return None
            keys = [self._keys.stream, self._keys.state(self._group), self._keys.dead(self._group)]
            reply = run(
                self._bus.client, "unsettled", keys, [self._group, start, _id(highest), PENDING_A_SCRIPT]
            )
            if reply is None:
                return None
            era, position, last, ids = reply
            if text(era) != self._era or id_pair(position) < highest or id_pair(last) != look.last:
                return None
            look.pending.update(map(id_pair, ids))
            if len(ids) < PENDING_A_SCRIPT:
                return look
            start = f"({text(ids[-1])}"

    def _letters(self, floor: InboxFloor, old: set[tuple[int, ...]]) -> _Look | None:
        """Look at all dead letters; None if the time is over.

        Those that the database has are not read again, unless some are gone.
        """
        letters = [entry for entry in old if entry[2:4] != _NEVER]
        look = _Look({(entry[2], entry[3]): (entry[0], entry[1]) for entry in letters})
        cursor = (floor.letter_ms, floor.letter_seq)
        fresh = self._read_letters(look, cursor)
        if fresh is None:
            return None
        if look.count != floor.letters + fresh or look.last < cursor:
            look = _Look({})
            if self._read_letters(look, _NEVER) is None:
                return None
        return look

    def _read_letters(self, look: _Look, after: _Pair) -> int | None:
        """Read the letters after one into a look; return how many they are, None if the time is over."""
        read = 0
        for count, last, letters in self._letter_pages(after):
            look.count, look.last = count, last
            read += len(letters)
            look.letters.update(letters)
            if not letters:
                return read
        return None

    def _letter_pages(self, after: _Pair) -> Iterator[tuple[int, _Pair, dict[_Pair, _Pair]]]:
        """Yield the number of letters, the last id given, and a page of letters; the last page is empty."""
        while time.monotonic() <= self._ends:
            count, last, rows = run(
                self._bus.client,
                "letters",
                [self._keys.dead(self._group)],
                [_id(after), LETTERS_A_SCRIPT, LETTER_BYTES_A_SCRIPT],
            )
            letters = {id_pair(letter): _message_of(raw) for letter, raw in rows}
            yield int(count), id_pair(last), letters
            if letters:
                after = max(letters)

    # ------------------------------------------------------------------ rows

    def _delete_rows(self, floor: _Pair, is_open: set[_Pair]) -> int:
        from bus.models import InboxRow

        ms, seq = floor
        rows = _of(InboxRow, self._alias, self._place)
        # Ids from 2**63 on are stored negative (see IdPartField): they stay for as long as their era.
        rows = rows.filter(ms__gte=0, seq__gte=0)
        below = rows.filter(Q(ms__lt=ms) | Q(seq__lte=seq), ms__lte=ms).order_by("ms", "seq")
        deleted, after = 0, below
        while time.monotonic() <= self._ends and (
            page := list(after.values_list("pk", "ms", "seq")[:ROWS_A_STATEMENT])
        ):
            deleted += _delete(rows, [pk for pk, *pair in page if tuple(pair) not in is_open])
            _, last_ms, last_seq = page[-1]
            after = below.filter(Q(ms__gt=last_ms) | Q(seq__gt=last_seq), ms__gte=last_ms)
        return deleted


def _delete(rows: Any, keys: list[int]) -> int:
    return sum(
        rows.filter(pk__in=keys[at : at + ROWS_A_STATEMENT]).delete()[0]
        for at in range(0, len(keys), ROWS_A_STATEMENT)
    )


def _id(pair: _Pair) -> str:
    return f"{pair[0]}-{pair[1]}"


def _message_of(raw: bytes) -> _Pair:
    """Return the id of a letter's message; _NEVER if the letter names none that can be."""
    return _NEVER if known_id(raw) is None else id_pair(raw)
