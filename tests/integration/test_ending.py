"""Nothing that tests start outlives a process of tests that is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import nursery
from tests.waiting import wait_until

#: Processes of tests that start something, say which process it is, and wait to be killed.
PROGRAMS = {
    "a fork of the nursery": """
        import os, pathlib
        from tests import nursery
        waits = "import signal; signal.pause()"
        pid = nursery.start(["-c", waits], os.environ, pathlib.Path(os.devnull)).pid
    """,
    "a program": """
        import subprocess
        from tests import ending
        pid = subprocess.Popen(ending.with_tests(["sleep", "600"])).pid
    """,
    "an embedded server": """
        import sys
        from tests.servers import valkey_server
        pid = valkey_server(sys.argv[1]).start().pid
    """,
}


@pytest.mark.parametrize("what", PROGRAMS)
def test_what_a_killed_process_of_tests_has_started_ends(what: str, tmp_path: Path) -> None:
    lines = [line.strip() for line in PROGRAMS[what].strip().splitlines()]
    program = "\n".join([*lines, "print(pid, flush=True)", "import time; time.sleep(600)"])
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "server"],
        cwd=nursery.ROOT, stdout=subprocess.PIPE, text=True,
    ) as tests:  # fmt: skip
        assert tests.stdout is not None
        started = Path(f"/proc/{tests.stdout.readline().strip()}")
        assert (started / "stat").exists()

        tests.kill()

    wait_until(lambda: has_ended(started), 30, "it to end")


def has_ended(process: Path) -> bool:
    """Whether it is gone, or only waits for somebody to ask how it ended: not every first process does."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
