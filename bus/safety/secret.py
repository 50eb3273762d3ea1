"""Texts and bytes that debug pages and error mails do not show: passwords."""

from __future__ import annotations


class Secret(str):
    """A text like any other, except for its repr, which is what debug pages and error mails show.

    `str()` and f-strings give the text itself, to be sent to the server.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class SecretBytes(bytes):
    """Bytes to be sent that hold a password."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "b'***'"
