"""A message as people see it, on the pages and on the command line alike, whatever its bytes are."""

from __future__ import annotations

from bus.errors import Undecodable
from bus.safety.unreadable import escaped
from bus.values import Message


def key_of(message: Message) -> str | None:
    """The key as text, None where there is none."""
    key = message.raw.get(b"k")
    return None if key is None else escaped(key)


def why_undecodable(message: Message) -> str:
    """Why it cannot be decoded, as a sentence; "" where it can be. Handlers get it by the same rule."""
    try:
        message.value  # noqa: B018 - decodes all of it
    except Undecodable as error:
        return str(error)
    return ""
