"""The examples run as they stand, in an empty folder, and do what they say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ending
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


class Example:
    """One example in a folder of its own, with the embedded server that it starts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ours = ("BUS_", "JITNEY_", "DJANGO_", "CELERY_", "PYTEST_")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "BUS_TEST_RUN": "0",  # readers run it outside of tests
            "BUS_URL": f"embedded://{directory}/.jitney-examples",
            "PYTHONPATH": str(ROOT),
        }
        self._log = directory / "output"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: str) -> None:
        """Start `python -m …`."""
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                ending.with_tests([sys.executable, *command.split()[1:]]),
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def says(self, *texts: str) -> None:
        """Wait until these texts stand in its output, in this order."""
        pattern = re.compile(".*".join(re.escape(text) for text in texts), re.S)

        def told() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.output()
            return pattern.search(self.output()) is not None

        wait_until(told, 60, f"{texts} in the output")

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def interrupt(self) -> int:
        """Ctrl-C; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(60)

    def jitney(self, *arguments: str) -> str:
        """Run the command line beside it; its output."""
        return subprocess.run(
            [sys.executable, "-m", "bus.cli", *arguments],
            cwd=self.directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)
        self.jitney("server", "stop")


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Example]:
    """An empty folder in which an example can be started."""
    example = Example(tmp_path)
    yield example
    example.end()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_names_its_command(path: Path) -> None:
    text = path.read_text()
    assert 10 <= len(text.splitlines()) <= 40
    assert f"python -m examples.{path.stem}" in text.split('"""')[1]


def test_what_is_published_is_consumed_in_the_order_of_its_key(example: Example) -> None:
    example.start("python -m examples.publish_and_consume")
    example.says("stored as", "A1: reserve 1", "A1: reserve 2", "A1: reserve 3")
    assert example.interrupt() == 0
    assert "3" in example.jitney("topics")


def test_what_fails_is_tried_again_and_then_a_dead_letter(example: Example) -> None:
    example.start("python -m examples.retries_and_dead_letters")
    example.says("slow: attempt 1", "slow: attempt 2")
    example.says("unlucky: attempt 1", "unlucky: attempt 2", "unlucky: attempt 3", "is a dead letter")
    assert example.interrupt() == 0
    letters = json.loads(example.jitney("dead", "list", "payments", "charge", "--json"))
    listed = letters["letters"] if isinstance(letters, dict) else letters
    assert sorted((letter["key"], letter["attempts"]) for letter in listed) == [("empty", 1), ("unlucky", 3)]
    assert "slow: attempt 3" not in example.output()


def test_a_deposit_whose_process_dies_is_booked_once(example: Example) -> None:
    example.start("python -m examples.once_with_the_database")
    example.says("booked 10, balance 10", "exited", "booked 20, balance 30", "booked 30, balance 60")
    assert example.interrupt() == 0
    assert example.output().count("booked") == 3
