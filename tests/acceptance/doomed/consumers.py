"""Not handlers: imported in every worker, it puts a bug into the thread that DOOMED names.

The thread goes on as ever until the file DOOM exists, and then ends with an error that it does not expect;
the main loop stands still.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from workers.consumer import Consumer
from workers.membership.keeper import Membership
from workers.scheduling.watcher import Watcher


def _doom(thread: type[Watcher] | type[Membership], method: str) -> None:
    sound = getattr(thread, method)

    def doomed(self: Watcher | Membership, *arguments: object) -> object:
        if Path(os.environ["DOOM"]).exists():
            raise RuntimeError("told to end the thread")
        return sound(self, *arguments)

    setattr(thread, method, doomed)


def _doom_the_main_loop() -> None:
    sound = Consumer.tick

    def stuck(self: Consumer) -> None:
        if Path(os.environ["DOOM"]).exists():
            threading.Event().wait()
        sound(self)

    Consumer.tick = stuck  # type: ignore[method-assign]


if os.environ.get("DOOMED") == "main loop":
    _doom_the_main_loop()
if os.environ.get("DOOMED") == "watcher":
    _doom(Watcher, "_watch_once")
if os.environ.get("DOOMED") == "membership":
    _doom(Membership, "_attempt")
