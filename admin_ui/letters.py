"""Dead letters for pages: what is shown of them, and which of them a request means."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from django.http import QueryDict

from admin_ui.messages import MessageRow, message_row
from bus import deadletters
from bus.client import Bus
from bus.deadletters import DeadLetter, Place, Selection
from bus.errors import ConfigurationError
from bus.unreadable import visible

#: Letters on one page.
LETTERS = 50


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

    rows: list[LetterRow]
    kept: int
    """All of the group, whatever was searched for."""
    dropped: int | None
    """Older ones that DEAD_LIMIT has pushed out; None: unknown."""
    older: str
    """The id after which the next page begins; empty if this is the last."""


def letters(bus: Bus, topic: str, group: str, selection: Selection) -> LetterRows:
    """One page. Raises UnknownTopic, UnknownGroup, BusUnavailable."""
    found = list(islice(deadletters.find(bus, topic, group, selection, newest_first=True), LETTERS + 1))
    count = deadletters.count(bus, topic, group)
    return LetterRows(
        rows=[letter_row(letter) for letter in found[:LETTERS]],
        kept=count.kept,
        dropped=count.dropped,
        older=str(found[LETTERS - 1].place) if len(found) > LETTERS else "",
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
    """What the query of a page asks for. Raises ConfigurationError for what is no id, number or time."""
    return Selection(
        places=tuple(Place.parse(one) for one in query.getlist("id")) or None,
        partition=_number(query, "partition"),
        key=query.get("key") or None,
        reason=query.get("reason") or None,
        before=Place.parse(query.get("before", "")) if query.get("before") else None,
    )


def needs_peek(query: QueryDict) -> bool:
    """True if the query asks by what messages hold: who may not read them must not find them by it either."""
    return bool(query.get("key") or query.get("reason"))


def until(query: QueryDict) -> datetime | None:
    """The moment up to which letters were counted, which a confirmed form brings back."""
    known = _number(query, "until")
    return None if known is None else datetime.fromtimestamp(known / 1000, UTC)


def _number(query: QueryDict, name: str) -> int | None:
    written = query.get(name, "").strip()
    if not written:
        return None
    if not (written.isascii() and written.isdigit() and len(written) <= 15):
        raise ConfigurationError(f"{name} must be a whole number, not {written!r}.")
    return int(written)
