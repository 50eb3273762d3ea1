"""How long each Lua script holds the server, where there is as much as there can be.

    python -m benchmarks.scripts [--redis7] [--rounds N] [--entries N] [--waiting N] [--only NAME]

A private server with one partition of 1,000,000 messages, of which 200,000 are pending, wait for a retry or
are held back, and a topic of 1,024 partitions. The verbs are called as workers and operators call them; the
server's own SLOWLOG says how long each script, and each other command that matters, ran. Run it as root: then
the server goes before all else that the machine does. Elsewhere that lengthens single runs; so there is the
median too, and of several rounds the best longest run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import django

from benchmarks import contest, scenes, worst
from benchmarks.slowlog import Bench, put_first
from bus.streams.embedded import EmbeddedServer

SCENES = (*scenes.SCENES, *worst.SCENES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--redis7", action="store_true", help="the distribution's redis-server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--waiting", type=int, default=200_000)
    parser.add_argument("--only", choices=[scene.__name__ for scene in SCENES])
    options = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
    django.setup()
    results: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(options.rounds):
        for scene in SCENES:
            if options.only not in (None, scene.__name__):
                continue
            with tempfile.TemporaryDirectory(prefix="jb") as directory:
                binary = "redis-server" if options.redis7 else None
                with EmbeddedServer(Path(directory), binary=binary) as server:
                    put_first(server.pid)
                    bench = Bench(server, options.entries, options.waiting)
                    began = time.monotonic()
                    scene(bench)
                    print(f"{scene.__name__}: {time.monotonic() - began:.1f} s", flush=True)
                    bench.bus.close()
            for key, rounds in bench.runs.items():
                results.setdefault(key, []).extend(rounds)
    print(
        f"\n{contest.machine()}\n\n| runs | while | times | median ms | longest ms |\n|---|---|---|---|---|"
    )
    for (command, what), rounds in results.items():
        every = [millis for runs in rounds for millis in runs]
        longest = min(map(max, rounds))
        median = statistics.median(every)
        print(f"| `{command}` | {what} | {len(rounds[0]):,} | {median:.1f} | {longest:,.1f} |")


if __name__ == "__main__":
    main()
