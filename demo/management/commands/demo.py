"""`manage.py demo`: orders feed inventory, through real processes, with a check at the end."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from demo.runner import Options, run
from demo.source import BadFile, check_file

#: Messages a second, of all producers together, where no rate is given.
_RATE = 100.0


class Command(BaseCommand):
    help = (
        "Start a Valkey, the web server, a Celery worker and producers of orders; each run has its own files "
        "under .jitney/demo/. Ctrl-C stops everything. With --seconds or --file it ends by itself and checks "
        "that stock, purchase orders and revenue are exactly what the published records demand."
    )
    # The runner must not touch a database, and its children do their own checks.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        ending = parser.add_mutually_exclusive_group()
        ending.add_argument("--seconds", type=_positive, metavar="N", help="publish so long, check, end")
        ending.add_argument("--file", type=Path, metavar="CSV", help="publish its lines, check, end")
        parser.add_argument(
            "--rate",
            type=_positive,
            metavar="R",
            help=f"messages a second (default: {_RATE:.0f}; a file: as fast as it goes)",
        )
        parser.add_argument("--producers", type=_count, default=2, metavar="K", help="processes (default: 2)")
        parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the orders (default: 1)")
        parser.add_argument("--port", type=_port, default=8000, metavar="P", help="web port (default: 8000)")
        parser.add_argument("--no-web", action="store_true", help="without the web server")

    def handle(self, *_arguments: Any, **given: Any) -> None:
        if given["file"]:
            try:
                check_file(given["file"])
            except BadFile as error:
                raise CommandError(str(error), returncode=2) from error
        options = Options(
            seconds=given["seconds"],
            file=given["file"],
            rate=given["rate"] or (None if given["file"] else _RATE),
            producers=given["producers"],
            seed=given["seed"],
            port=given["port"],
            web=not given["no_web"],
        )
        os.umask(0o077)  # logs and ledgers of all children hold what others need not read
        code = run(
            options,
            project=Path(settings.BASE_DIR),
            data=Path(settings.DATA_DIR),
            prefix=str(settings.BUS["PREFIX"]),
            say=self._say,
        )
        sys.exit(code)

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 64:
        raise argparse.ArgumentTypeError("must be from 1 to 64")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("must be from 0 (any free one) to 65535")
    return number
