"""Makes what is logged of an exception: bounded, readable, and never an error of its own.

A log is read by people and by programs that take each line that is not indented for a record. So no text of
an exception may reach it as it is, whoever wrote it.
"""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any

from bus.safety.visible import visible

#: Bytes of one text that are kept: a character has up to four.
MAX_TEXT = 4_000
#: Bytes of a traceback in the log, and of all texts in it.
MAX_TRACEBACK = 4 * MAX_TEXT
#: Characters of the name of a class that are kept.
MAX_NAME = 200
#: Exceptions (causes, members of groups) of one traceback, and notes of one exception, that are kept.
MAX_EXCEPTIONS, MAX_NOTES = 20, 10

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def clipped(text: object, limit: int = MAX_TEXT) -> str:
    """Return the beginning and the end of a text, as UTF-8 can hold it, in `limit` bytes at most."""
    whole = text_of(text)
    raw = whole[: limit + 1].encode("utf-8", "replace")
    if len(whole) <= limit and len(raw) <= limit:
        return raw.decode()
    mark = f" … ({len(whole):,} characters) … "
    half = (limit - len(mark.encode())) // 2
    end = whole[-half:].encode("utf-8", "replace")[-half:].decode("utf-8", "ignore")
    return raw[:half].decode("utf-8", "ignore") + mark + end


def text_of(value: object) -> str:
    """Return the text of anything, also where it cannot be made."""
    try:
        return str.__str__(str(value))  # no subclass of str with methods of its own
    except BaseException:
        return f"({clipped(type(value).__name__, MAX_NAME)}, whose text cannot be made)"


def exc_info(error: BaseException | None) -> ExcInfo | None:
    """Return the exception for a log record.

    It is the real one, which error trackers look into, unless its texts are far too long or it cannot be
    shown: then a copy with less of them, under the same names.
    """
    if error is None:
        return None
    try:
        if not is_small(error) or formatted(error) is None:
            error = copied(error)
    except BaseException:  # whatever an exception of the project's is made of
        error = Exception(clipped(error)).with_traceback(error.__traceback__)
    return type(error), error, error.__traceback__


def exc_text(error: BaseException) -> str:
    """Return the traceback as text for the log. Every line is indented, and shows what would deceive."""
    text = formatted(error) or f"{clipped(type(error).__name__, MAX_NAME)}, whose traceback cannot be made\n"
    # Escapes are longer than what they stand for.
    lines = clipped(visible(clipped(text, MAX_TRACEBACK), "\n\t"), MAX_TRACEBACK).rstrip("\n").split("\n")
    return "\n".join(f"  {line}" for line in lines)


def formatted(error: BaseException) -> str | None:
    """Return the traceback as Python makes it; None if it cannot be made, as of a SyntaxError whose line is
    no text.
    """
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:
        return None


def is_small(error: BaseException) -> bool:
    """True if all texts of the error, and of those that it comes from or holds, may be shown in full."""
    waiting, chained, count, size = [error], set[int](), 0, 0
    while waiting:
        found = waiting.pop()
        count += 1
        texts = _texts(found)
        size += sum(map(len, texts))
        if count > MAX_EXCEPTIONS or size > MAX_TRACEBACK or max(map(len, texts)) > MAX_TEXT:
            return False
        if len(type(found).__name__) > MAX_NAME or len(_notes(found)) > MAX_NOTES:
            return False
        # A traceback shows a cause once, but a member of a group as often as it is one.
        waiting += _members(found)
        for came_from in _came_from(found):
            if id(came_from) not in chained:
                chained.add(id(came_from))
                waiting.append(came_from)
    return True


def copied(error: BaseException) -> BaseException:
    """Return an exception that shows the same with less text, and that can be shown."""
    return _Copier().copy(error)


class _Copier:
    """Copies an exception with those that it comes from or holds, as far as MAX_EXCEPTIONS goes."""

    def __init__(self) -> None:
        self._left = MAX_EXCEPTIONS
        self._chained: set[int] = set()
        """Ids of what others come from: a traceback shows each once, so a circle ends. A member of a group is
        shown as often as it is one, so each has a copy of its own, which counts.
        """

    def copy(self, error: BaseException) -> BaseException:
        self._left -= 1
        members = self._copies_of(_members(error))
        name = visible(clipped(type(error).__name__, MAX_NAME))
        kind = BaseExceptionGroup if members else Exception
        made: Any = type(name, (kind,), {"__module__": clipped(type(error).__module__, MAX_NAME)})
        text = clipped(getattr(error, "message", "") if members else error)
        short: BaseException = made(text, members) if members else made(text)
        for note in _notes(error)[:MAX_NOTES]:
            short.add_note(clipped(note))
        for came_from in _came_from(error):
            if self._left > 0 and id(came_from) not in self._chained:
                self._chained.add(id(came_from))
                if came_from is error.__cause__:
                    short.__cause__ = self.copy(came_from)
                else:
                    short.__context__ = self.copy(came_from)
        return short.with_traceback(error.__traceback__)

    def _copies_of(self, members: list[BaseException]) -> list[BaseException]:
        copies: list[BaseException] = []
        for number, member in enumerate(members):
            if self._left <= 0:
                return [*copies, Exception(f"and {len(members) - number:,} more")]
            copies.append(self.copy(member))
        return copies


def _texts(error: BaseException) -> list[str]:
    texts = [text_of(error), *map(text_of, _notes(error)[: MAX_NOTES + 1])]
    if isinstance(error, SyntaxError):
        texts.append(text_of(error.text))  # the line, which is shown too
    return texts


def _notes(error: BaseException) -> list[object]:
    try:
        notes = getattr(error, "__notes__", None)
        return list(notes) if isinstance(notes, list | tuple) else [] if notes is None else [notes]
    except BaseException:
        return []


def _members(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return []
    try:
        return [member for member in error.exceptions if isinstance(member, BaseException)]
    except BaseException:  # of a class that has members of its own making
        return []


def _came_from(error: BaseException) -> list[BaseException]:
    """Return the exception that a traceback shows before this one."""
    found = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return [] if found is None else [found]
