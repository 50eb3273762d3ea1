"""A fork of the nursery is to its test what a process of `python` would be."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests import nursery
from tests.waiting import wait_until

WAIT = "import signal; print('waits', flush=True); signal.pause()"


def test_it_does_a_program_with_its_arguments_and_environment_alone() -> None:
    program = "import os, sys; print(sys.argv, dict(os.environ), os.getcwd())"

    output = nursery.run(["-c", program, "a b"], {"ONE": "1"})

    assert output == f"['-c', 'a b'] {{'ONE': '1'}} {nursery.ROOT}\n"


def test_it_does_a_module_and_a_file() -> None:
    assert "Usage: python -m celery" in nursery.run(["-m", "celery", "--help"], os.environ)
    assert "Available subcommands" in nursery.run(["manage.py", "help"], os.environ)


def test_it_leads_a_session_of_its_own_and_ends_by_signals_as_others_do(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = nursery.start(["-c", WAIT], os.environ, log)
    wait_until(lambda: log.exists() and log.read_text() == "waits\n", what="the program to wait")

    assert os.getsid(process.pid) == process.pid
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(signal.SIGTERM)

    assert process.wait(20) == process.poll() == -signal.SIGTERM
    process.send_signal(signal.SIGTERM)  # nobody is there any more


def test_an_exit_code_is_told_and_is_an_error_where_it_is_not_0() -> None:
    with pytest.raises(AssertionError, match="exit code 3:\nso it is"):
        nursery.run(["-c", "print('so it is'); raise SystemExit(3)"], os.environ)
    assert nursery.run(["-c", "raise SystemExit(3)"], os.environ, check=False) == ""
