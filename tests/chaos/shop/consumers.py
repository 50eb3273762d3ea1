"""Handlers that fail and dawdle by the seed, and write down what they did."""

from __future__ import annotations

import faulthandler
import os
import signal
import time

import bus
from tests.chaos import sabotage
from tests.chaos.ledger import Handling, Ledger
from tests.chaos.shop.fate import fate
from tests.chaos.shop.topics import GROUPS, keyed, loose

#: So many attempts that no message becomes a dead letter, however often its process is killed.
PATIENT = bus.RetryPolicy(attempts=100, delay=0.3, factor=1.5, max_delay=2.0, jitter=0.1)

_SEED = int(os.environ["CHAOS_SEED"])
_WORKER = os.environ["CHAOS_WORKER"]
_ledger = Ledger(os.environ["CHAOS_LEDGER"])


def act(message: bus.Message) -> None:
    """Meet one's fate, with a line before and a line after."""
    value, now = message.value, time.monotonic_ns
    meets = fate(_SEED, value["id"], message.attempt)

    def write(what: str) -> None:
        _ledger.write(Handling(what, message.topic, message.partition, message.id, value["id"],
                               message.key or "-", value["seq"], message.attempt, _WORKER, os.getpid(),
                               now()))  # fmt: skip

    write("start")
    if meets.seconds:
        time.sleep(meets.seconds)
    if meets.fails:
        write("fail")
        raise RuntimeError(f"fated to fail at attempt {message.attempt}")
    write("end")


@bus.subscribe(keyed, group=GROUPS["keyed"], ordering="key", retry=PATIENT)
def by_key(message: bus.Message) -> None:
    act(message)


@bus.subscribe(loose, group=GROUPS["loose"], ordering="none", retry=PATIENT)
def anyhow(message: bus.Message) -> None:
    act(message)


# A worker that hangs is asked where, before it is killed.
faulthandler.register(signal.SIGUSR2)
sabotage.commit(os.environ.get("CHAOS_SABOTAGE", ""))
