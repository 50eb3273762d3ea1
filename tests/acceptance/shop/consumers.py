"""Handlers that do what the message tells them, and write down what they did.

A message's value is {"n": number} and any of these. Where it says "attempts", all up to that one do so.
    sleep, slow     sleep so many seconds (at so many attempts, else at every one)
    until           wait until a file of this name exists
    stubborn        attempts that never end, whatever is raised inside them
    die, exit       attempts that kill their process by SIGKILL, or end it by os._exit
    fail, raises    attempts that raise, and what, if it is not RuntimeError
    postpone        seconds after which the first attempt asks to be tried again
    reject          reason for a dead letter
    odd             what no outcome can be made of at once (see shop.oddities)
    database        "use" it, "close" its connection underneath and raise, or leave it "unfit" and raise
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from asgiref.sync import sync_to_async
from celery.exceptions import WorkerShutdown
from django.db import connection, transaction

import bus
from tests.acceptance.shop import ledger
from tests.acceptance.shop.oddities import be_odd
from tests.acceptance.shop.topics import awaited, batches, keyed, limited, loose, strict


class Panic(BaseException):
    """What a panic in Rust looks like: pyo3_runtime.PanicException is no Exception."""


ERRORS: dict[str, type[BaseException]] = {
    each.__name__: each
    for each in (
        RuntimeError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Panic,
        WorkerShutdown,
    )
}  # fmt: skip

SOON = bus.RetryPolicy(attempts=3, delay=0.05, factor=1.0, jitter=0.0)


def _place(message: bus.Message) -> tuple[object, ...]:
    return (
        message.topic,
        message.partition,
        message.id,
        message.key or "-",
        message.value["n"],
        message.attempt,
    )


def act(message: bus.Message) -> None:
    """Do what the message says."""
    what, caller = message.value, os.getpid()
    ledger.write("start", *_place(message))
    if what.get("sleep") and message.attempt <= what.get("slow", message.attempt):
        time.sleep(what["sleep"])
    if what.get("until"):
        while not os.path.exists(what["until"]):
            time.sleep(0.05)
    if message.attempt <= what.get("stubborn", 0):
        _stay()
    _fall(message)
    if what.get("database"):
        _query(what["database"])
    if what.get("postpone") and message.attempt == 1:
        raise bus.Retry("told to wait", delay=what["postpone"])
    _fail(message)
    be_odd(message)
    if os.getpid() != caller:
        return  # forked off
    if what.get("reject"):
        raise bus.Reject(what["reject"])
    ledger.write("end", *_place(message))


def _stay() -> None:
    while True:
        try:
            time.sleep(60)
        except Exception as error:
            ledger.write("unmoved", type(error).__name__)


def _fall(message: bus.Message) -> None:
    if message.attempt <= message.value.get("die", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if message.attempt <= message.value.get("exit", 0):
        os._exit(7)


def _fail(message: bus.Message) -> None:
    if message.attempt <= message.value.get("fail", 0):
        raise ERRORS[message.value.get("raises", "RuntimeError")](
            f"told to fail at attempt {message.attempt}"
        )


def _query(what: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    if what == "close":
        connection.connection.close()
        connection.cursor().execute("SELECT 1")
    if what == "unfit":
        transaction.set_autocommit(False)
        raise RuntimeError("told to leave a transaction behind")


@bus.subscribe(keyed, group="bykey", ordering="key", retry=SOON)
def by_key(message: bus.Message) -> None:
    act(message)


@bus.subscribe(strict, group="inorder", ordering="partition", retry=SOON)
def in_order(message: bus.Message) -> None:
    act(message)


@bus.subscribe(loose, group="anyhow", ordering=os.environ.get("SHOP_LOOSE_ORDERING", "none"), retry=SOON)
def anyhow(message: bus.Message) -> None:
    act(message)


@bus.subscribe(limited, group="limits", retry=SOON, soft_time_limit=1.0, time_limit=3.0)
def within_limits(message: bus.Message) -> None:
    act(message)


@bus.subscribe(batches, group="crates", batch=50, retry=SOON)
def crate(batch: Any) -> None:
    """The first message that is told to fail breaks the whole call, as a real bug would."""
    caller = os.getpid()
    for message in batch:
        ledger.write("start", *_place(message))
        _fall(message)
        if message.value.get("reject"):
            batch.reject(message, message.value["reject"])
        _fail(message)
        be_odd(message)
        if os.getpid() != caller:
            return  # forked off
    for message in batch:
        if not message.value.get("reject"):
            ledger.write("end", *_place(message))


@bus.subscribe(awaited, group="waiters", ordering="key", retry=SOON, soft_time_limit=20.0)
async def wait_for(message: bus.Message) -> None:
    """Like `act`, but it awaits; "together": so many messages must be in hand at once before any goes on."""
    what, caller = message.value, os.getpid()
    ledger.write("start", *_place(message))
    _fall(message)
    if what.get("together"):
        _met.add(message.id)
        while len(_met) < what["together"]:
            await asyncio.sleep(0.01)
    if what.get("query"):
        await sync_to_async(_query)("use")
    if what.get("sleep"):
        await asyncio.sleep(what["sleep"])
    _fail(message)
    be_odd(message)
    if os.getpid() != caller:
        return  # forked off
    if what.get("reject"):
        raise bus.Reject(what["reject"])
    ledger.write("end", *_place(message))


_met: set[str] = set()
