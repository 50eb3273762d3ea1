"""One child process of the runner: in a process group of its own, with a log, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

#: Waits for the end of its input, which the system closes when the runner ends in whatever way; then ends
#: the child, and what is left of its process group after 10 seconds.
_GUARD = """
read _
kill -TERM "$0" || exit 0
left=10
while [ $left -gt 0 ] && kill -0 "$0"; do sleep 1; left=$((left - 1)); done
kill -KILL "-$0"
"""


class Child:
    """A command that runs as long as the demo does."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        log: Path,
        descriptor: int | None = None,
    ) -> None:
        """`directory`: where it runs. `descriptor`: an open file that it inherits."""
        self.name = name
        self.log = log
        self.restarts = 0
        self.started = 0.0
        """When it was started last, by time.monotonic()."""
        self._command = list(command)
        self._directory = directory
        self._environment = dict(environment)
        self._inherited = () if descriptor is None else (descriptor,)
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its output is added to the log."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=self._inherited,
                process_group=0,  # Ctrl-C is for the runner, which ends its children in order
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        self.started = time.monotonic()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def ended(self) -> int | None:
        """Return its exit code (-9: killed by signal 9) once it has ended; None while it runs.

        What is left of its process group is killed then: pool processes whose parent is gone, for example.
        """
        if self._process is None or self._process.returncode is not None:
            return self._process.returncode if self._process else 0
        # Before the process is waited for, its number cannot belong to anybody else.
        if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        self._kill_group()
        code = self._process.wait()
        self._dismiss_guard()
        return code

    def terminate(self) -> None:
        """Ask it to end. Its own children are its own business: a worker lets them finish."""
        if self.ended() is None and self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End it and its process group at once."""
        if self.ended() is None and self._process is not None:
            self._kill_group()
            self._process.wait()
            self._dismiss_guard()

    def tail(self, lines: int = 15) -> str:
        """Return the last lines of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (the log is empty)"

    def _kill_group(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
                os.killpg(self._process.pid, signal.SIGKILL)

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.communicate()
            self._guard = None
