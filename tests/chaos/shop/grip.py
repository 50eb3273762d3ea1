"""Holds a handler at one message, with the rest of its batch in hand, until the run lets go.

The run lays a grip: a file. The first handler of a gripped message that finds it takes it, says which worker
is held at which message, and waits until the run removes what it said.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

#: The group whose handler may be held.
GROUP = "bykey"
#: Names of the messages at which a handler may be held begin with this.
PREFIX = "gripped-"


class Held(NamedTuple):
    """A handler that is held."""

    worker: str
    id: str
    """Of the message."""
    said: Path
    """It is held while this file is there."""


class Grip:
    """The grip at one path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lay(self) -> None:
        self._path.touch()

    def held(self) -> list[Held]:
        """All that are held now."""
        said = self._path.parent.glob(f"{self._path.name}.held.*")
        return [Held(*path.read_text().split(), path) for path in said]  # type: ignore[call-arg]

    def hold(self, worker: str, name: str, message_id: str) -> None:
        """In a handler: be held here, if this message is gripped and the grip is laid."""
        if not name.startswith(PREFIX):
            return
        taken = self._path.with_name(f"{self._path.name}.taken.{os.getpid()}")
        try:
            os.rename(self._path, taken)
        except FileNotFoundError:
            return
        taken.write_text(f"{worker} {message_id}")
        said = self._path.with_name(f"{self._path.name}.held.{os.getpid()}")
        os.replace(taken, said)
        while said.exists():
            time.sleep(0.02)  # nothing else tells us
