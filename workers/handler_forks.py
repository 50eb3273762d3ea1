"""Ends the processes that a handler forks off: a slice belongs to the process that began it.

A child of os.fork() returns from the handler into a copy of the slice, with its parent's sockets, database
connections and pipes. It ends there, with the exit code that it asked for: as soon as it leaves the handler,
and at the latest before it uses anything of Jitney's. Its parent goes on, and only the parent says what
became of the message.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress


class HandlerForks:
    """Tells a process that a handler forked off from the one that its slice belongs to. One per process."""

    __slots__ = ("_armed", "is_child", "on_birth")

    def __init__(self) -> None:
        self.is_child = False
        """True if this process was forked off while a slice ran here. It is read after each message, so it is
        an attribute and no call.
        """
        self.on_birth: Callable[[], None] | None = None
        """Called in a child as soon as it exists."""
        self._armed = False

    def begin_slice(self) -> None:
        """Begin a slice: whatever process is forked off from now on is a child, and not the slice's own."""
        self.is_child = False
        if not self._armed:
            self._armed = True  # children inherit the hook together with this
            os.register_at_fork(after_in_child=self._born)

    def _born(self) -> None:
        self.is_child = True
        if self.on_birth is not None:
            self.on_birth()

    def end_child(self, error: BaseException | None = None) -> None:
        """End this process if a handler forked it off. `error`: what the handler raised, if anything."""
        if self.is_child:
            _exit(error)


handler_forks = HandlerForks()


def _exit(error: BaseException | None) -> None:
    """End the process as an interpreter ends, but run nothing that its parent has registered.

    Never returns.
    """
    code = 1
    try:
        code = _code_of(error)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)


def _code_of(error: BaseException | None) -> int:
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
        return 1
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1
