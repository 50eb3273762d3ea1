"""Loads and runs the Lua scripts, and makes and reads what other commands share: raw ids and bytes.

Scripts live in `scripts/`, each with a header of keys, arguments and reply. A line `-- @include name` in one
stands for a function that several need, `scripts/lib/name.lua`. Scripts are sent by EVALSHA and, where the
server does not know them yet, once more by EVAL: a NOSCRIPT error means that nothing ran, so that is not a
second write.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from bus.errors import ForeignData, PartitionFull, ServerError
from bus.streams.connect import Client, check, error_of
from bus.streams.wire import Argument, Command


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script: its text and its SHA-1."""

    text: bytes
    sha: str

    def by_sha(self, keys: Sequence[str], args: Sequence[Argument]) -> Command:
        return ("EVALSHA", self.sha, len(keys), *keys, *args)

    def by_text(self, keys: Sequence[str], args: Sequence[Argument]) -> Command:
        return ("EVAL", self.text, len(keys), *keys, *args)


_INCLUDE = re.compile(rb"^-- @include (\w+)\n", re.MULTILINE)


@cache
def script(name: str) -> Script:
    """Return the script in `scripts/<name>.lua`, with what it includes."""
    folder = files("bus.streams").joinpath("scripts")

    def function(line: re.Match[bytes]) -> bytes:
        return folder.joinpath("lib", f"{line[1].decode()}.lua").read_bytes()

    text = _INCLUDE.sub(function, folder.joinpath(f"{name}.lua").read_bytes())
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest())


def is_noscript(reply: Any) -> bool:
    """Return whether the server does not know a script; nothing ran then."""
    return isinstance(reply, ServerError) and reply.code == "NOSCRIPT"


def is_nogroup(error: object) -> bool:
    """Return whether an error says that the stream or the group is gone."""
    return isinstance(error, ServerError) and (
        error.code in ("NOGROUP", "UNBLOCKED") or "NOGROUP" in str(error) or "no such key" in str(error)
    )


def is_wrongtype(reply: object) -> bool:
    """Return whether an error says that a key is of another type: somebody else has written it."""
    return isinstance(reply, ServerError) and reply.code == "WRONGTYPE"


def is_of_one_partition(reply: object) -> bool:
    """Return whether an error concerns the keys of one partition only, so that others can be worked on."""
    if not isinstance(reply, ServerError) or is_nogroup(reply):
        return False
    return isinstance(error_of(reply), ServerError | ForeignData | PartitionFull)


def run(client: Client, name: str, keys: Sequence[str], args: Sequence[Argument] = ()) -> Any:
    """Run a script and return its reply. Raises its error, or BusUnavailable."""
    return check(run_many(client, name, [(keys, args)])[0])


def run_many(
    client: Client, name: str, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]
) -> list[Any]:
    """Run a script many times in one round trip; errors are values among the replies.

    `calls`: keys and arguments of each. Raises BusUnavailable.
    """
    called = script(name)
    replies = client.pipe([called.by_sha(keys, args) for keys, args in calls])
    missing = [index for index, reply in enumerate(replies) if is_noscript(reply)]
    if missing:
        # EVAL also caches the script, so the first of them heals the server for all later calls.
        again = client.pipe([called.by_text(*calls[index]) for index in missing])
        for index, reply in zip(missing, again, strict=True):
            replies[index] = reply
    return replies


def scan(client: Client, pattern: str) -> list[str]:
    """Return the names of all keys that match a pattern. Reads the whole key space, in pieces."""
    names: list[str] = []
    cursor: Argument = "0"
    while True:
        cursor, page = client.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
        names += [text(name) for name in page]
        if cursor in (b"0", "0"):
            return names


def add_command(stream: str, fields: Sequence[bytes]) -> Command:
    """Return an XADD that makes no stream: one without its groups would lose messages for them."""
    return ("XADD", stream, "NOMKSTREAM", "*", *fields)


def fields_of(reply: Sequence[Any]) -> dict[str, Any]:
    """Return a flat reply of names and values (XINFO, HGETALL) as a dictionary with text names."""
    return {_name(name): value for name, value in zip(reply[::2], reply[1::2], strict=True)}


@lru_cache(256)
def _name(raw: Any) -> str:
    """Return the name of a field. The same few come again and again, so they are cached."""
    return text(raw)


def text(value: Any) -> str:
    """Return a reply as text. What is not UTF-8, and so none of ours, gets escapes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
