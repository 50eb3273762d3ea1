"""What handlers do that no outcome can be made of at once: the message names it as "odd".

ODD    ends in an exception each time, so the message becomes a dead letter
FORKS  forks off a process that leaves the handler in some way; the message is done, once
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import bus
from bus.errors import InboxUnavailable
from bus.signals import message_dead, message_retried


class LogBreaker(Exception):
    """No line of the log can be written about it."""


class ReceiverBreaker(Exception):
    """Whoever hears of it exits."""


class Bare(bus.Retry):
    """Its own constructor forgets that of its base."""

    def __init__(self) -> None:
        pass


class Mute(Exception):
    """It exits when it is asked what it says."""

    def __str__(self) -> str:
        raise SystemExit(3)


def _raise(error: BaseException) -> None:
    raise error


def _changed(**attributes: object) -> bus.Retry:
    error = bus.Retry("changed")
    error.__dict__.update(attributes)
    return error


ODD: dict[str, Callable[[Any], object]] = {
    "timedelta": lambda _: _raise(bus.Retry("later", delay=timedelta(seconds=0.05))),
    "text": lambda _: bus.Retry("later", delay="soon"),  # type: ignore[arg-type]  # on purpose
    "infinite": lambda _: bus.Retry("later", delay=math.inf),
    "no number": lambda _: bus.Retry("later", delay=math.nan),
    "for ever": lambda _: bus.Retry("later", delay=1e300),
    "bare": lambda _: _raise(Bare()),
    "changed": lambda _: _raise(_changed(delay="soon")),
    "mute": lambda _: _raise(Mute()),
    "unprintable": lambda _: _raise(SyntaxError("x", ("f.py", 1, 1, b"line"))),  # type: ignore[arg-type]
    "attempt": lambda message: setattr(message, "attempt", 0),
    "id": lambda message: setattr(message, "id", "1-1"),
    "inbox": lambda _: _raise(InboxUnavailable("told to say so")),
    "log": lambda _: _raise(LogBreaker("told to fail")),
    "receiver": lambda _: _raise(ReceiverBreaker("told to fail")),
}


def _fork(leave: Callable[[], object]) -> None:
    pid = os.fork()
    if pid == 0:
        leave()
        return
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    descriptor = os.open(os.environ["SHOP_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"child {code}\n".encode())
    os.close(descriptor)


#: kind → (how its child leaves, the exit code that its parent is to see)
FORKS: dict[str, tuple[Callable[[], object], int]] = {
    "returns": (lambda: None, 0),
    "exits": (lambda: sys.exit(0), 0),
    "exits with 5": (lambda: sys.exit(5), 5),
    "exits with a word": (lambda: sys.exit("told to exit"), 1),
    "raises": (lambda: _raise(ValueError("told to fail")), 1),
}


def be_odd(message: Any) -> None:
    """Do what the message says. Returns in the processes that are forked off, too."""
    odd = message.value.get("odd")
    if odd in ODD:
        ODD[odd](message)
        raise AssertionError(f"{odd} has raised nothing")
    if odd in FORKS:
        _fork(FORKS[odd][0])


def _break_the_log(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], LogBreaker):
        raise RuntimeError("told to break the log")
    return True


def _break_off(exception: BaseException | None, **_: Any) -> None:
    if isinstance(exception, ReceiverBreaker):
        sys.exit(4)


logging.getLogger("jitney.workers").addFilter(_break_the_log)
for _signal in (message_retried, message_dead):
    _signal.connect(_break_off, weak=False)
