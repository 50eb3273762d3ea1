"""The run itself, on real processes, and the proof that it notices what it is there to notice.

The storm lasts two minutes, with a new seed each time; CHAOS_SEED repeats one.
`make chaos ARGS="--minutes 30 --seed 7"` runs it for longer.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import ending
from tests.chaos.duel import Duel
from tests.chaos.judge import Verdict
from tests.chaos.processes import ROOT
from tests.chaos.report import report
from tests.chaos.run import Options, Run

pytestmark = pytest.mark.timeout(300)


def run(directory: Path, **options: object) -> Verdict:
    verdict = Run(Options(**options), directory, print)()  # type: ignore[arg-type]
    print(report(verdict))
    return verdict


@pytest.mark.timeout(600)
def test_every_promise_is_kept_under_every_kind_of_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # given a storm in which every kind of fault comes, another one each time
    seed = os.environ.get("CHAOS_SEED") or str(random.SystemRandom().randrange(1_000_000))
    with capsys.disabled():
        print(f"\nchaos: repeat this storm with CHAOS_SEED={seed}")
    command = [sys.executable, "-m", "tests.chaos", "--minutes", "2", "--interval", "3", "--seed", seed,
               "--rate", "60", "--drain", "180", "--directory", str(tmp_path)]  # fmt: skip

    # when
    done = subprocess.run(
        ending.with_tests(command), cwd=ROOT, capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip

    # then
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("chaos passed: ")


def test_clean_stops_repeat_nothing(tmp_path: Path) -> None:
    verdict = run(tmp_path, seconds=8, interval=1.2, only=("stop",), workers=3, rate=100)
    assert not verdict.wrong
    assert not verdict.repeats
    assert verdict.kinds["stop"] > 2


def assert_noticed(directory: Path, noticed: Callable[[Verdict], bool], **options: object) -> None:
    """The sabotage shows in a run. A storm in which it happens to do no harm proves nothing: then another."""
    for seed in (1, 2, 3):
        (directory / str(seed)).mkdir()
        if noticed(run(directory / str(seed), seed=seed, **options)):
            return
    pytest.fail(f"Three runs with the sabotage {options['sabotage']!r} showed nothing of it.")


def duel(directory: Path, **options: object) -> Verdict:
    verdict = Duel(Options(workers=2, rate=20, **options), directory, print)()  # type: ignore[arg-type]
    print(report(verdict))
    return verdict


def test_a_worker_that_comes_back_where_another_has_messages_in_hand_repeats_none_of_them(
    tmp_path: Path,
) -> None:
    assert not duel(tmp_path).wrong


def test_without_the_fence_a_worker_that_comes_back_repeats_what_another_has_in_hand(tmp_path: Path) -> None:
    assert duel(tmp_path, drain=5, sabotage="fence").unexplained


def test_without_durable_retries_what_a_killed_process_was_to_try_again_is_lost(tmp_path: Path) -> None:
    assert_noticed(
        tmp_path,
        lambda verdict: bool(verdict.lost),
        seconds=8, interval=1, only=("child", "kill"), workers=2, rate=200, drain=4, sabotage="retries",
    )  # fmt: skip


def test_without_recovery_what_a_killed_process_had_in_hand_is_lost(tmp_path: Path) -> None:
    assert_noticed(
        tmp_path,
        lambda verdict: bool(verdict.lost) and any(left.pending for left in verdict.leftovers),
        seconds=6, interval=1, only=("child", "kill"), workers=2, rate=200, drain=4, sabotage="recovery",
    )  # fmt: skip
