"""Python programs that begin with everything imported, as forks of one process that each test process has.

To start and stop a worker takes 1.7 s of CPU, and 0.4 s where the imports are done. In all else a fork is a
process as if `python -m` had started it, with its own session, environment, log, signals and end. The demo,
the examples and the projects of `test_second_project` and `test_guard` start theirs cold, as users do.

What is forked here ends when the process of the tests does, however that ends.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import ending

ROOT = Path(__file__).resolve().parents[1]

#: What workers and commands import: as much of it as needs neither settings nor Django's registry of apps.
IMPORTS = {
    "celery": "__main__ app.amqp app.control app.events app.log app.routes apps.worker backends.base "
    "bin.celery concurrency.prefork concurrency.thread contrib.django.task events.dispatcher events.state "
    "fixups.django loaders.app worker.autoscale worker.consumer worker.consumer.delayed_delivery "
    "worker.pidbox worker.strategy",
    "kombu": "matcher pidbox transport.redis",
    "billiard": "heap popen_fork sharedctypes synchronize",
    "django": "core.cache.backends.locmem core.management.commands.migrate db.backends.sqlite3.base "
    "middleware.clickjacking middleware.common middleware.security template.context_processors "
    "template.defaulttags template.loader_tags templatetags.cache templatetags.i18n templatetags.l10n "
    "templatetags.tz urls views.csrf views.debug views.defaults views.generic",
    "django.contrib": "admin.checks admin.options admin.sites admin.views.main auth.checks auth.hashers "
    "auth.management auth.password_validation auth.validators contenttypes.checks contenttypes.management "
    "messages.middleware sessions.backends.base sessions.middleware staticfiles.checks staticfiles.finders "
    "staticfiles.storage",
    "whitenoise": "middleware",
    "bus": "autodiscover checks databases format.letter observe operating.groups transactions.outbox",
    "workers": "celery consumer slices.crew slices.handling slices.slice",
}


# ------------------------------------------------------------------ for tests


class Forked:
    """A process of the nursery; the part of `subprocess.Popen` that tests use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None and _readable(self._ended, 0):
            self.returncode = _nursery().code(self.pid)
            os.close(self._ended)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        if self.returncode is None and not _readable(self._ended, timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Nothing happens if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def start(command: list[str], environment: Mapping[str, str], log: Path) -> Forked:
    """Start `python` with these arguments: first `-m` and a module, `-c` and a program, or a file.

    It runs in the root of the project, and writes into `log`.
    """
    return Forked(_nursery().fork(command, environment, log))


def run(
    command: list[str], environment: Mapping[str, str], timeout: float = 60, *, check: bool = True
) -> str:
    """Run `python` with these arguments to its end; what it has written.

    Raises subprocess.TimeoutExpired; AssertionError for another exit code than 0, unless `check` is False.
    """
    with tempfile.NamedTemporaryFile() as log:
        process = start(command, environment, Path(log.name))
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            raise
        output = Path(log.name).read_text(errors="replace")
    assert code == 0 or not check, f"{command} ended with exit code {code}:\n{output}"
    return output


def _readable(fd: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


class _Nursery:
    """The process that is forked, as seen from the tests."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery"],
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        atexit.register(self.close)

    def fork(self, command: list[str], environment: Mapping[str, str], log: Path) -> int:
        return self._ask({"command": command, "environment": dict(environment), "log": str(log)})

    def code(self, pid: int) -> int:
        return self._ask({"ended": pid})

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it, and with it what it has forked. For the process that made it alone."""
        if self.owner == os.getpid():
            self._process.communicate()


_made: list[_Nursery] = []


def _nursery() -> _Nursery:
    if not _made or _made[0].owner != os.getpid():
        _made[:] = [_Nursery()]
    return _made[0]


# ------------------------------------------------------------------ in the process that is forked


def serve() -> list[str]:
    """Fork on request until the tests end. It returns in a fork alone: the command that is to be done."""
    parent = os.getpid()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "ended" in request:
            reply = os.waitstatus_to_exitcode(os.waitpid(request["ended"], 0)[1])
        elif reply := os.fork():
            pass
        else:
            _become(request, parent)
            command: list[str] = request["command"]
            return command
        os.write(1, b"%d\n" % reply)
    os._exit(0)


def _become(request: dict[str, Any], parent: int) -> None:
    """Be as a process that was started anew."""
    ending.with_parent(parent)
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    os.close(nothing)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()


def main() -> None:
    for package, names in IMPORTS.items():
        for name in names.split():
            importlib.import_module(f"{package}.{name}")
    gc.collect()
    gc.freeze()  # so that no fork copies what none of them changes
    how, *rest = serve()
    if how == "-m":
        sys.argv[1:] = rest[1:]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.argv[:] = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv[:] = [how, *rest]
        runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
    main()
