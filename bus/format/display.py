"""Shows messages to people, on the pages and on the command line alike."""

from __future__ import annotations

from bus.errors import Undecodable
from bus.safety.unreadable import escaped
from bus.values import Message


def key_of(message: Message) -> str | None:
    """Return the key as text; None if there is none."""
    key = message.raw.get(b"k")
    return None if key is None else escaped(key)


def why_undecodable(message: Message) -> str:
    """Return why a message cannot be decoded, as a sentence; "" if it can. Handlers are told the same."""
    try:
        message.value  # noqa: B018 - decodes all of it
    except Undecodable as error:
        return str(error)
    return ""
