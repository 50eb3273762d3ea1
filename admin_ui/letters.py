"""Dead letters for pages: what is shown of them, and which of them a request means.

A request that does not say so clearly is refused with BadQuery.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice

from django.http import QueryDict

from admin_ui.asked import BadQuery, asked, value
from admin_ui.data.messages import MessageRow, message_row
from bus.client import Bus
from bus.errors import ConfigurationError
from bus.format.keys import PartitionKeys
from bus.moments import moment
from bus.operating import deadletters, filters
from bus.operating.deadletters import DeadLetter, Origin, Selection
from bus.safety.unreadable import shown, visible

#: Letters on one page.
LETTERS_A_PAGE = 50

#: What letters can be searched by, as it stands in addresses.
FILTERS = ("partition", "key", "reason", "since")
#: Digits of a moment in milliseconds at most.
_DIGITS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterRow:
    """One dead letter. Texts are plain: the template escapes them."""

    id: str
    reason: str
    error: str
    attempts: int
    first: datetime | None
    last: datetime | None
    message: MessageRow


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterRows:
    """A page of the dead letters of a group, newest first."""

    letters: list[LetterRow]
    kept: int
    """All of the group, whatever was searched for."""
    dropped: int | None
    """Older ones that DEAD_LIMIT has pushed out; None: unknown."""
    older: str
    """The id after which the next page begins; empty if this is the last."""
    read_only: bool
    """The project may only look."""


def letters(bus: Bus, topic: str, group: str, selection: Selection) -> LetterRows:
    """Return one page. Raises UnknownTopic, UnknownGroup, BadQuery (no such partition), BusUnavailable."""
    every = partitions(bus, topic, group, selection)
    newest = deadletters.find(bus, topic, group, selection, newest_first=True, all_keys=every)
    some = list(islice(newest, LETTERS_A_PAGE + 1))
    count = deadletters.count(bus, topic, group, every)
    return LetterRows(
        letters=[letter_row(letter) for letter in some[:LETTERS_A_PAGE]],
        kept=count.kept,
        dropped=count.dropped,
        older=str(some[LETTERS_A_PAGE - 1].place) if len(some) > LETTERS_A_PAGE else "",
        read_only=bus.settings.read_only,
    )


def letter_row(letter: DeadLetter) -> LetterRow:
    return LetterRow(
        id=str(letter.place),
        reason=visible(letter.reason),
        error=visible(letter.error, keep="\n\t"),
        attempts=letter.attempts,
        first=letter.first,
        last=letter.last,
        message=message_row(letter.message),
    )


def searched(query: QueryDict) -> Selection:
    """Return what the page of dead letters is to list; all where nothing is asked for."""
    values = asked(query, ("id", *FILTERS, "before", "live"))
    return replace(_selection(values, filters.since), before=value(values, "before", Origin.parse))


def meant(query: QueryDict) -> Selection:
    """Return what is to be retried or discarded, to be counted first: one letter, what matches, or all."""
    return _selection(_said(query), filters.since)


def counted(query: QueryDict, form: QueryDict, now: datetime) -> Selection:
    """Return what a confirmed form means: exactly what was counted for it. `now`: by the server's clock.

    Its query is as of `to_confirm`, so what it means does not move with the clock.
    """
    selection = _selection(_said(query), filters.moment)
    until = value(asked(form, ("until",)), "until", _moment)
    if until is None:
        raise BadQuery("'until', the moment up to which they were counted, is missing: count them first.")
    if until > now:
        raise BadQuery("'until' is later than the clock of the server: what dies by then was not counted.")
    return replace(selection, until=until)


def to_confirm(query: QueryDict, selection: Selection) -> str:
    """Return the query with which a confirmed form comes back; a duration in it has become a moment."""
    fixed = query.copy()
    if selection.since is not None:
        fixed["since"] = selection.since.isoformat()
    return fixed.urlencode()


def partitions(bus: Bus, topic: str, group: str, selection: Selection) -> list[PartitionKeys]:
    """Return the keys of all partitions.

    Raises BadQuery where one is named that the topic does not have, and what `deadletters.partitions` raises.
    """
    every = deadletters.partitions(bus, topic, group)
    named = {place.partition for place in selection.places or ()}
    if selection.partition is not None:
        named.add(selection.partition)
    if named and max(named) >= len(every):
        raise BadQuery(f"Topic {topic!r} has the partitions 0 to {len(every) - 1}, and no {max(named)}.")
    return every


def needs_peek(query: QueryDict) -> bool:
    """Return whether the query asks by what messages hold: that takes the permission to read them."""
    return "key" in query or "reason" in query


def without_empty(query: QueryDict) -> str:
    """Return the query of the search form, which sends all its fields, without those that are empty."""
    kept = query.copy()
    for name, written in query.lists():
        if name in ("search", "live") or (name in FILTERS and not "".join(written).strip()):
            del kept[name]
    return kept.urlencode()


def _said(query: QueryDict) -> dict[str, str]:
    """Return the values of a query that says which letters are meant: ids, or filters, or all."""
    values = asked(query, ("id", *FILTERS, "all"))
    if values.get("all", "1") != "1":
        raise BadQuery(f"'all' can be 1 only, not {shown(values['all'])}.")
    if not filters.is_said("id" in values, values.keys() & set(FILTERS), "all" in values):
        raise BadQuery(f"Say which: 'id', or some of {', '.join(map(repr, FILTERS))}, or 'all=1'.")
    return values


def _selection(values: Mapping[str, str], since: Callable[[str], datetime]) -> Selection:
    place = value(values, "id", Origin.parse)
    return Selection(
        places=None if place is None else (place,),
        partition=value(values, "partition", filters.partition),
        key=values.get("key"),
        reason=value(values, "reason", filters.reason),
        since=value(values, "since", since),
    )


def _moment(written: str) -> datetime:
    if not (written.isascii() and written.isdigit() and len(written) <= _DIGITS):
        raise ConfigurationError(f"{shown(written)} is not a moment in milliseconds.")
    return moment(int(written))
