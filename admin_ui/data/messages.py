"""Messages as rows: decoded and pretty-printed on the server, cut to size, safe to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from bus.format.display import Kind, cut, headers_of, key_of, shown_value
from bus.safety.unreadable import visible
from bus.values import Message

#: Characters of a value shown in its row.
PREVIEW = 200

#: Bytes of a value shown when its row is opened.
BODY = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRow:
    """One message to be shown. Texts are plain: the template escapes them."""

    topic: str
    partition: int
    id: str
    timestamp: datetime
    key: str | None
    headers: Mapping[str, str]
    kind: Kind
    undecodable: bool
    """Handlers cannot be given it."""
    note: str
    """Why the value is not shown as JSON, or cannot be given to handlers; empty if neither is so."""
    preview: str
    body: str
    size: int
    """Bytes of the value in Redis."""
    cut: bool
    """True if `body` is only the beginning."""


def message_row(message: Message) -> MessageRow:
    """Return a message as text, whatever its bytes are. Raises nothing."""
    value, key = shown_value(message, BODY), key_of(message)
    size = len(message.raw.get(b"v", b""))
    return MessageRow(
        topic=message.topic,
        partition=message.partition,
        id=message.id,
        timestamp=message.timestamp,
        key=None if key is None else cut(visible(key, keep="\n\t"), PREVIEW),
        headers=headers_of(message),
        kind=value.kind,
        undecodable=value.undecodable,
        note=value.note,
        preview=cut(value.line, PREVIEW),
        body=value.body,
        size=size,
        cut=size > BODY,
    )
