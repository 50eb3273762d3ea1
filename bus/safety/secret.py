"""Texts that must not be seen: passwords."""

from __future__ import annotations


class Secret(str):
    """A text like any other, but for its repr, which is what debug pages and error mails show.

    `str()` and f-strings give the text itself, which the server is to be told.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class SecretBytes(bytes):
    """Bytes to be sent that hold a password."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "b'***'"
