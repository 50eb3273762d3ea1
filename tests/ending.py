"""What tests start ends with them, also when they are killed and cannot end it."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import TypeVar

Word = TypeVar("Word")

_PR_SET_PDEATHSIG = 1


def with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent has ended. Does nothing but on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it has ended before
            os._exit(1)


def with_tests(command: Sequence[Word], number: signal.Signals = signal.SIGKILL) -> list[Word | str]:
    """A command that gets this signal when this process ends, which must start it; where util-linux is."""
    if not shutil.which("setpriv"):
        return [*command]
    # The shell looks whether we had ended before the kernel was asked.
    alive = 'test "$PPID" = "$0" || exit 1; exec "$@"'
    asks = ["setpriv", "--pdeathsig", number.name.removeprefix("SIG"), "sh", "-c", alive, str(os.getpid())]
    return [*asks, *command]
