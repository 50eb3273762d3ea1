"""Reads strictly what a request asks for: what is not understood is refused, never taken for "everything"."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from django.http import HttpRequest, QueryDict

from bus.errors import BusError, ConfigurationError
from bus.safety.unreadable import shown

T = TypeVar("T")

#: The field that Django puts into each form.
_CSRF = "csrfmiddlewaretoken"


class BadQuery(BusError):
    """The query or the form of a request cannot be used: which part, and why. Nothing was done."""


def asked(given: QueryDict, allowed: Collection[str]) -> dict[str, str]:
    """Return name → value of a query or a posted form. Raises BadQuery: unknown, repeated or empty."""
    values: dict[str, str] = {}
    for name, written in given.lists():
        if name == _CSRF:
            continue
        if name not in allowed:
            names = ", ".join(sorted(allowed)) or "none"
            raise BadQuery(f"{shown(name)} is not known here. What can be given: {names}.")
        if len(written) != 1:
            raise BadQuery(f"{name!r} is given {len(written)} times: give it once.")
        if not written[0].strip():
            raise BadQuery(f"{name!r} is empty: give it a value, or leave it out.")
        values[name] = written[0]
    return values


def nothing_asked(request: HttpRequest) -> None:
    """Raise BadQuery if a request says more than its path does: it may mean less than would be done."""
    asked(request.GET, ())
    asked(request.POST, ())


def value(values: Mapping[str, str], name: str, parse: Callable[[str], T]) -> T | None:
    """Return a value, read by the bus's own function for it; None if it is not given. Raises BadQuery."""
    if name not in values:
        return None
    try:
        return parse(values[name])
    except ConfigurationError as error:
        raise BadQuery(f"{name!r}: {error}") from error
