"""Keeps log lines from repeating while something stays wrong: a cause is logged at once, then rarely."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from bus.errors import Forbidden
from bus.safety import tracebacks
from bus.safety.visible import visible

#: How often the same complaint is repeated. Seconds.
COMPLAIN_SECONDS = 60.0
#: Causes that are remembered at most. Those that were logged longest ago are forgotten first; then they are
#: logged again.
MAX_CAUSES = 1_000


class Complaints:
    """Complaints to one logger. Thread-safe."""

    def __init__(
        self,
        logger: logging.Logger,
        *,
        seconds: float = COMPLAIN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._causes: OrderedDict[Hashable, _Line] = OrderedDict()
        """Cause → its last line."""

    def say(
        self,
        cause: Hashable,
        text: str,
        *args: Any,
        level: int = logging.WARNING,
        exc_info: BaseException | None = None,
        of: int = 1,
    ) -> bool:
        """Log `text % args`; return False if it is kept back: this cause was logged less than `seconds` ago.

        What is kept back is counted, and the next line of this cause says how many there were. `of`: how many
        things this line tells of.
        """
        with self._lock:
            last = self._causes.get(cause)
            if last is not None and self._clock() < last.quiet_until:
                last.kept_back += of
                return False
            kept_back = last.kept_back if last is not None else 0
            self._causes[cause] = _Line(self._clock() + self._seconds)
            self._causes.move_to_end(cause)
            while len(self._causes) > MAX_CAUSES:
                self._causes.popitem(last=False)
        if kept_back:
            text, args = f"{text} (%s more like this since the last line)", (*args, f"{kept_back:,}")
        write(self._logger, level, text, *args, exc_info=exc_info)
        return True

    def trouble(self, error: BaseException, text: str, *args: Any) -> None:
        """Log that Redis cannot be used.

        A refusal by access rules is a warning, since it does not pass by itself. Redis that is away is logged
        by the keeper of the leases, so here that is for debugging only.
        """
        if isinstance(error, Forbidden):
            self.say((text, str(error)), text, *args)
        else:
            write(self._logger, logging.DEBUG, text, *args)

    def over(self, cause: Hashable) -> None:
        """Forget this cause, which is over: if it comes back it is logged at once."""
        with self._lock:
            self._causes.pop(cause, None)


def write(
    logger: logging.Logger, level: int, text: str, *args: Any, exc_info: BaseException | None = None
) -> None:
    """Log `text % args`, with the traceback of `exc_info`, an exception. What deceives is shown as escapes.

    What a filter or a handler of the project's LOGGING raises harms only this line, which goes to stderr.
    """
    if not logger.isEnabledFor(level):
        return
    args = tuple(_shown(arg) for arg in args)
    try:
        _log(logger, level, text, args, exc_info)
    except Exception as error:
        if sys.__stderr__ is not None:
            why = f"{type(error).__name__} while it was logged"
            print(f"{logging.getLevelName(level)}: {text % args} ({why})", file=sys.__stderr__, flush=True)


def _log(
    logger: logging.Logger, level: int, text: str, args: tuple[Any, ...], error: BaseException | None
) -> None:
    shown = tracebacks.exc_info(error)
    file, line, function, _ = logger.findCaller(stacklevel=3)
    record = logger.makeRecord(logger.name, level, file, line, text, args, shown, function)
    if shown is not None:
        # Formatters show this text as it is; error trackers look into the exception.
        record.exc_text = tracebacks.exc_text(shown[1])
    logger.handle(record)


def _shown(arg: Any) -> Any:
    """Return what is foreign, or may quote it, as one line of visible text."""
    return visible(tracebacks.clipped(arg)) if isinstance(arg, str | BaseException) else arg


class _Line:
    """The last line of one cause."""

    __slots__ = ("kept_back", "quiet_until")

    def __init__(self, quiet_until: float) -> None:
        self.quiet_until = quiet_until
        self.kept_back = 0
