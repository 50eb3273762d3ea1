"""Handlers that do what the message tells them, and write down what they did.

A message's value: {"n": number, "sleep": seconds, "fail": how many attempts fail, "reject": reason,
"die": how many attempts kill their process}.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import bus
from tests.acceptance.shop import ledger
from tests.acceptance.shop.topics import batches, keyed, loose, strict

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
    what = message.value
    ledger.write("start", *_place(message))
    if what.get("sleep"):
        time.sleep(what["sleep"])
    if message.attempt <= what.get("die", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if message.attempt <= what.get("fail", 0):
        raise RuntimeError(f"told to fail at attempt {message.attempt}")
    if what.get("reject"):
        raise bus.Reject(what["reject"])
    ledger.write("end", *_place(message))


@bus.subscribe(keyed, group="bykey", ordering="key", retry=SOON)
def by_key(message: bus.Message) -> None:
    act(message)


@bus.subscribe(strict, group="inorder", ordering="partition", retry=SOON)
def in_order(message: bus.Message) -> None:
    act(message)


@bus.subscribe(loose, group="anyhow", ordering="none", retry=SOON)
def anyhow(message: bus.Message) -> None:
    act(message)


@bus.subscribe(batches, group="crates", batch=50, retry=SOON)
def crate(batch: Any) -> None:
    """The first message that is told to fail breaks the whole call, as a real bug would."""
    for message in batch:
        if message.value.get("reject"):
            batch.reject(message, message.value["reject"])
        elif message.attempt <= message.value.get("fail", 0):
            raise RuntimeError("told to fail")
    for message in batch:
        if not message.value.get("reject"):
            ledger.write("end", *_place(message))
