"""Says who a worker is, and whether another one of this host is provably gone.

A process id alone proves nothing: ids are used again, and in another container or after a reboot they name
other processes. The boot id and the pid namespace say whether an id means the same here; the time at which
the process started says whether it is still the same process.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")

#: Field 22 of /proc/<pid>/stat, counted from field 3, the first one after the process name.
_START_FIELD = 22 - 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The identity of one start of a worker.

    What the system does not tell is "" or None, and proves nothing.
    """

    incarnation: str
    """Unique to this start; letters, digits, '.', '_' and '-'."""
    host: str
    pid: int
    boot: str
    """Id of this boot of the kernel."""
    pidns: str
    """The namespace in which `pid` has its meaning, such as `pid:[4026531836]`."""
    start: int | None
    """When the process started, in clock ticks since the boot."""
    started: int
    """When the process was asked who it is, in ms since 1970."""

    def to_record(self) -> dict[str, object]:
        """Return its part of the record in the table of workers, to be written as JSON."""
        return {
            "host": self.host,
            "pid": self.pid,
            "boot": self.boot,
            "pidns": self.pidns,
            "start": self.start,
            "started": self.started,
        }


def this_process() -> Identity:
    """Return a new identity for this process. Each call gives another incarnation."""
    host, pid = socket.gethostname(), os.getpid()
    start = _start_ticks(pid)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", host)[:40] or "host"
    return Identity(
        incarnation=f"{name}-{pid}-{start or 0}-{secrets.token_hex(4)}",
        host=host,
        pid=pid,
        boot=_boot_id(),
        pidns=_pid_namespace(),
        start=start,
        started=int(time.time() * 1000),
    )


def is_proven_gone(record: Mapping[str, object]) -> bool:
    """Return True only if the process of `record` ran on this very system and does not run any more.

    False whenever anything is unknown. Only the worker's main process is meant. Children of its pool may live
    on for a moment; the fence of the lease holds them off.
    """
    pid, start, boot, pidns = (record.get(name) for name in ("pid", "start", "boot", "pidns"))
    if not isinstance(pid, int) or not isinstance(start, int) or pid <= 0 or not boot or not pidns:
        return False
    if boot != _boot_id() or pidns != _pid_namespace():
        return False
    if not _exists(pid):
        return True
    now = _start_ticks(pid)
    return now is not None and now != start


def _exists(pid: int) -> bool:
    # Signal 0 only asks. /proc may hide the processes of other users; this tells of them too.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _boot_id() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return ""


def _start_ticks(pid: int) -> int | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
        # The name of the process stands in parentheses and may itself hold spaces and parentheses.
        return int(text.rpartition(")")[2].split()[_START_FIELD])
    except (OSError, ValueError, IndexError):
        return None
