"""Running contestants in turn and comparing them."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping

Contestant = Callable[[], float]


def run(contestants: Mapping[str, Contestant], rounds: int, unit: str) -> dict[str, list[float]]:
    """Run all contestants in turn, `rounds` times; what each achieved, in `unit`."""
    results: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        for name, contestant in contestants.items():
            achieved = contestant()
            results[name].append(achieved)
            print(f"round {number}: {name:<28} {achieved:>12,.0f} {unit}", file=sys.stderr, flush=True)
    return results


def show(title: str, results: Mapping[str, list[float]], baseline: str, unit: str) -> None:
    """Medians with their range, and the median of the ratios to the baseline, round by round."""
    print(f"{title}\n{machine()}\n")
    print(f"| contestant | median {unit} | min … max | ratio to {baseline} |")
    print("|---|---|---|---|")
    for name, achieved in results.items():
        ratios = [one / other for one, other in zip(achieved, results[baseline], strict=True)]
        print(
            f"| {name} | {statistics.median(achieved):,.0f} | {min(achieved):,.0f} … {max(achieved):,.0f} "
            f"| {statistics.median(ratios):.2f} |"
        )


def machine() -> str:
    """Versions and machine, without which a number says nothing."""
    import redis

    python = platform.python_version()
    cores = os.cpu_count()
    kind = f"{platform.system()} {platform.machine()}"
    return f"Python {python}, redis-py {redis.__version__}, {cores} cores, {kind}"
