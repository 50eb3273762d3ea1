"""`python -m tests.chaos --minutes 10 --seed 7`: exit code 0 if every promise was kept, else 1."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from tests.chaos import plan, sabotage
from tests.chaos.report import report
from tests.chaos.run import Options, Run


def main() -> int:
    options, given = _parse()
    signal.signal(signal.SIGTERM, _interrupted)
    temporary = given is None
    directory = Path(tempfile.mkdtemp(prefix="jitney-chaos-")) if given is None else given
    directory.mkdir(parents=True, exist_ok=True)
    print(
        f"Chaos for {options.seconds:.0f} s, seed {options.seed}; logs and ledgers: {directory}", flush=True
    )
    try:
        verdict = Run(options, directory, lambda line: print(line, flush=True))()
    except KeyboardInterrupt:
        print("chaos was interrupted: no verdict", file=sys.stderr)
        return 1
    print(report(verdict), flush=True)
    if verdict.wrong:
        return 1
    if temporary:
        shutil.rmtree(directory)
    return 0


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _parse() -> tuple[Options, Path | None]:
    usual = Options()
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=usual.seconds / 60, help="of faults (default 1)")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--only", action="append", choices=plan.KINDS, help="these kinds of faults alone")
    parser.add_argument("--interval", type=float, default=usual.interval, help="seconds between two faults")
    parser.add_argument("--rate", type=float, default=usual.rate, help="messages a second")
    parser.add_argument("--workers", type=int, default=usual.workers)
    parser.add_argument("--processes", type=int, default=usual.processes, help="of each worker")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default=usual.database)
    parser.add_argument("--drain", type=float, default=usual.drain, help="seconds to settle everything")
    parser.add_argument(
        "--directory", type=Path, help="where logs and ledgers go and stay (default: a temporary one)"
    )
    parser.add_argument("--sabotage", choices=sorted(sabotage.WAYS), default="",
                        help="break one promise in the workers, to see that it is noticed")  # fmt: skip
    given = parser.parse_args()
    options = Options(
        seconds=given.minutes * 60,
        seed=given.seed,
        only=tuple(given.only or usual.only),
        interval=given.interval,
        rate=given.rate,
        workers=given.workers,
        processes=given.processes,
        drain=given.drain,
        database=given.database,
        sabotage=given.sabotage,
    )
    return options, given.directory


if __name__ == "__main__":
    sys.exit(main())
