"""What upkeep does to inboxes: raises their floors, and deletes the rows that nothing can ask for any more.

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
older data; and only on the word of a server that has given out all of that: one that has lost data has not. A
look at the pending list counts only if no message has become a dead letter since the letters were read. Who
was frozen between look and writing finds the floor's version changed; or writes what is still so.

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
from bus.transactions.marks import Place
from bus.values import id_pair, known_id

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.models import InboxFloor

#: Rows looked at, and pending ids read, at once.
PAGE = 500
#: Dead letters in one look, and bytes of them that are enough for one.
LETTERS, LETTER_BYTES = 100, 256 * 1024
#: How long one call of `forget` goes on. Seconds.
FORGET_SECONDS = 5.0
#: How long what is known of an era that is over is kept, by the ids of its messages. Milliseconds.
OLD_ERA_MS = 24 * 3600 * 1000

_Pair = tuple[int, int]
_Spot = tuple[str, str, int, str]
"""Group, topic, partition, era."""
_NEVER: _Pair = (0, 0)


def forget(bus: Bus, alias: str) -> int:
    """Raise the floors of a database and delete the rows that they stand for (see above); how many.

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
    busy: set[_Spot] = set(distinct(rows, "group", "topic", "partition", "era"))
    waiting = floors.filter(inboxopen__isnull=False).distinct()
    busy.update(waiting.values_list("group", "topic", "partition", "era"))
    known: set[_Spot] = set(floors.values_list("group", "topic", "partition", "era"))
    spots = busy | known
    if not spots:
        return 0
    places = sorted({spot[:3] for spot in spots})
    eras = bus.client.pipe(
        [("HGET", bus.keys.partition(topic, number).state(group), "era") for group, topic, number in places]
    )
    current = {place: _era(bus, place, era) for place, era in zip(places, eras, strict=True)}
    look = bus.registry.look()
    born = {(group.name, group.topic): group.born for group in look.groups}
    unknown = {each.field for each in look.unreadable if each.key == bus.keys.groups}
    copies = {
        (Place(row.topic, row.partition, row.group, row.born), row.era): id_pair(row.position)
        for row in MarkCopy.objects.filter(prefix=bus.settings.prefix)
        if known_id(row.position)
    }
    deleted, ends = 0, time.monotonic() + FORGET_SECONDS
    for spot in random.sample(sorted(spots), len(spots)):
        if time.monotonic() > ends:
            break  # the rest has its turn next time; in any order, so that nothing is always last
        group, topic, number, era = spot
        if current[group, topic, number] is None or unknown & {"", f"{topic}/{group}"}:
            continue  # what cannot be read does not say that anything is over
        declared = (group, topic) in born
        if declared and era == current[group, topic, number]:
            mark = copies.get((Place(topic, number, group, born[group, topic]), era))
            if mark is not None and spot in busy:
                deleted += _Forgetting(bus, alias, spot, ends).forget(mark)
        elif era.startswith(f"{bus.settings.prefix}:") or (declared and not era):
            deleted += _forget_era(alias, spot)
    return deleted


def _era(bus: Bus, place: tuple[str, str, int], reply: Any) -> str | None:
    """The era of a place now; None if that cannot be read."""
    group, topic, number = place
    key = bus.keys.partition(topic, number).state(group)
    era = None if stands_at(key, reply) else read_era(key, check(reply))
    return era if isinstance(era, str) else None


def _forget_era(alias: str, spot: _Spot) -> int:
    """Of an era that is over. Whoever is frozen in it inserts its row, and then finds the floor, or none."""
    from bus.models import InboxFloor, InboxOpen, InboxRow

    rows, oldest = _of(InboxRow, alias, spot), int(time.time() * 1000) - OLD_ERA_MS
    old = rows.filter(ms__lt=oldest)
    floors = _of(InboxFloor, alias, spot)
    floor = floors.first()
    if floor is not None and floor.ms < oldest:
        if old.exists() or not rows.exists():
            floors.delete()
    elif floor is not None and (handled := set(old.values_list("ms", "seq"))):
        # They lie below the floor, so they are open; and handled, as their rows say.
        opens = InboxOpen._default_manager.using(alias).filter(floor=floor)
        with transaction.atomic(using=alias):
            floors.update(version=F("version") + 1)
            found = opens.filter(ms__lt=oldest).values_list("pk", "ms", "seq")
            _delete(opens, [pk for pk, *pair in found if tuple(pair) in handled])
    return int(old.delete()[0])


def _of(model: Any, alias: str, spot: _Spot) -> Any:
    group, topic, number, era = spot
    rows = model._default_manager.using(alias)
    return rows.filter(group=group, topic=topic, partition=number, era=era)


@dataclass(slots=True)
class _Look:
    """What Redis says of a place; as a whole only where nothing has changed in between."""

    letters: dict[_Pair, _Pair]
    """Dead letter → its message."""
    count: int = 0
    """How many letters there were."""
    last: _Pair = _NEVER
    """The last id that a letter was given."""
    pending: set[_Pair] = field(default_factory=set)


class _Forgetting:
    """One place."""

    def __init__(self, bus: Bus, alias: str, spot: _Spot, ends: float) -> None:
        self._bus = bus
        self._alias = alias
        self._spot = spot
        self._ends = ends
        group, topic, number, self._era = spot
        self._group = group
        self._keys = bus.keys.partition(topic, number)

    def forget(self, mark: _Pair) -> int:
        """Raise the floor up to the mark, and delete the rows up to it that are not open; how many."""
        found = self._raise_floor(mark)
        return 0 if found is None else self._delete_rows(*found)

    # ------------------------------------------------------------------ the floor

    def _raise_floor(self, mark: _Pair) -> tuple[_Pair, set[_Pair]] | None:
        """The floor as it is in the database now, and the open messages; None: not this time."""
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

        group, topic, number, era = self._spot
        found, _ = InboxFloor._default_manager.using(self._alias).get_or_create(
            group=group, topic=topic, partition=number, era=era
        )
        return found

    def _write(
        self, floor: InboxFloor, state: tuple[int, ...], gone: set[tuple[int, ...]], new: set[tuple[int, ...]]
    ) -> bool:
        """False: somebody else has written it meanwhile, or a handler's transaction has locked it."""
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
                batch_size=PAGE,
            )
        return True

    # ------------------------------------------------------------------ what Redis says

    def _look(self, floor: InboxFloor, target: _Pair, old: set[tuple[int, ...]]) -> _Look | None:
        """None: the server has older data, something has died meanwhile, or time is over."""
        look = self._letters(floor, old)
        if look is None:
            return None
        highest = max([target, *((entry[0], entry[1]) for entry in old)])
        start = "-"
        while True:
            if time.monotonic() > self._ends:
                return None
            keys = [self._keys.stream, self._keys.state(self._group), self._keys.dead(self._group)]
            reply = run(self._bus.client, "unsettled", keys, [self._group, start, _id(highest), PAGE])
            if reply is None:
                return None
            era, position, last, ids = reply
            if text(era) != self._era or id_pair(position) < highest or id_pair(last) != look.last:
                return None
            look.pending.update(id_pair(each) for each in ids)
            if len(ids) < PAGE:
                return look
            start = f"({text(ids[-1])}"

    def _letters(self, floor: InboxFloor, old: set[tuple[int, ...]]) -> _Look | None:
        """All dead letters: those that are known, and those after them; all anew if some are gone."""
        known = {entry[2:4]: entry[0:2] for entry in old if entry[2:4] != _NEVER}
        look = _Look({(key[0], key[1]): (each[0], each[1]) for key, each in known.items()})
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
        found = 0
        for count, last, letters in self._letter_pages(after):
            look.count, look.last = count, last
            found += len(letters)
            look.letters.update(letters)
            if not letters:
                return found
        return None

    def _letter_pages(self, after: _Pair) -> Iterator[tuple[int, _Pair, dict[_Pair, _Pair]]]:
        while time.monotonic() <= self._ends:
            count, last, found = run(
                self._bus.client,
                "letters",
                [self._keys.dead(self._group)],
                [_id(after), LETTERS, LETTER_BYTES],
            )
            letters = {id_pair(letter): _message_of(raw) for letter, raw in found}
            yield int(count), id_pair(last), letters
            if letters:
                after = max(letters)

    # ------------------------------------------------------------------ rows

    def _delete_rows(self, floor: _Pair, is_open: set[_Pair]) -> int:
        from bus.models import InboxRow

        ms, seq = floor
        rows = _of(InboxRow, self._alias, self._spot)
        # Ids from 2**63 on are stored negative (see IdPartField): they stay for as long as their era.
        rows = rows.filter(ms__gte=0, seq__gte=0)
        below = rows.filter(Q(ms__lt=ms) | Q(seq__lte=seq), ms__lte=ms).order_by("ms", "seq")
        deleted, after = 0, below
        while time.monotonic() <= self._ends and (page := list(after.values_list("pk", "ms", "seq")[:PAGE])):
            deleted += _delete(rows, [pk for pk, *pair in page if tuple(pair) not in is_open])
            _, last_ms, last_seq = page[-1]
            after = below.filter(Q(ms__gt=last_ms) | Q(seq__gt=last_seq), ms__gte=last_ms)
        return deleted


def _delete(rows: Any, keys: list[int]) -> int:
    return sum(rows.filter(pk__in=keys[at : at + PAGE]).delete()[0] for at in range(0, len(keys), PAGE))


def _id(pair: _Pair) -> str:
    return f"{pair[0]}-{pair[1]}"


def _message_of(raw: bytes) -> _Pair:
    """Of a letter that names none, or nonsense: no message that there is."""
    return _NEVER if known_id(raw) is None else id_pair(raw)
