"""Not handlers: imported in every worker, it puts a bug into the thread that DOOMED names.

The thread goes on as ever until the file DOOM exists, and then ends with an error that it does not expect;
the main loop stands still; or signals arrive while Celery writes the header or the
body of a job to the pool (`SIGTERM SIGQUIT body`). With `farewell` the end of the worker waits for a broker
that says nothing, when all else has ended.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import billiard.pool
from celery.worker.consumer.events import Events
from kombu import Connection

from workers.consumer import Consumer
from workers.membership.keeper import Keeper
from workers.scheduling.watcher import Watcher


def _doom(thread: type[Watcher] | type[Keeper], method: str) -> None:
    sound = getattr(thread, method)

    def doomed(self: Watcher | Keeper, *arguments: object) -> object:
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


def _doom_the_writing(signals: list[str], where: str) -> None:
    sound = billiard.pool._get_send_offset

    def get(connection: object) -> Callable[[memoryview, int], int]:
        send: Callable[[memoryview, int], int] = sound(connection)

        def doomed(data: memoryview, offset: int) -> int:
            cue = Path(os.environ["DOOM"])
            part = "header" if len(data) == 4 else "body"
            if sys._getframe(1).f_code.co_name == "_write_job" and part == where and cue.exists():
                cue.unlink()
                for name in signals:  # their handlers run here, within the function that writes
                    signal.raise_signal(signal.Signals[name])
            return send(data, offset)

        return doomed

    billiard.pool._get_send_offset = get


def _doom_the_farewell() -> None:
    def shutdown(_step: Events, _consumer: object) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            Connection(f"amqp://127.0.0.1:{silent.getsockname()[1]}//", connect_timeout=3600).connect()

    Events.shutdown = shutdown


if os.environ.get("DOOMED") == "farewell":
    _doom_the_farewell()
if os.environ.get("DOOMED", "").startswith("SIG"):
    *_signals, _where = os.environ["DOOMED"].split()
    _doom_the_writing(_signals, _where)
if os.environ.get("DOOMED") == "main loop":
    _doom_the_main_loop()
if os.environ.get("DOOMED") == "watcher":
    _doom(Watcher, "_watch_once")
if os.environ.get("DOOMED") == "membership":
    _doom(Keeper, "_attempt")
