"""`manage.py bus …`: the command line inside a Django project."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from bus import default


class Command(BaseCommand):
    help = "Topics, groups and messages of the bus. `manage.py bus --help` lists the commands."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def run_from_argv(self, argv: list[str]) -> None:
        if argv[2:] in (["--help"], ["-h"]):
            argv = [*argv[:2], "--", "--help"]  # ours, not Django's, which knows none of the commands
        super().run_from_argv(argv)

    def handle(self, *, arguments: list[str], **_options: Any) -> None:
        try:
            from bus.cli import tree
            from bus.cli.audited import Audited
            from bus.cli.session import Session
        except ModuleNotFoundError as error:
            if error.name not in ("click", "rich"):
                raise
            raise CommandError("The command line needs click and rich: pip install 'jitney[cli]'") from error
        if arguments[:1] == ["--"]:
            arguments = arguments[1:]
        try:
            code = tree.run(Session(default.get, Audited), arguments, "manage.py bus")
        except DatabaseError as error:
            raise CommandError(
                f"The database cannot be used: {error}. Did `manage.py migrate` run?"
            ) from error
        if code:
            sys.exit(code)
