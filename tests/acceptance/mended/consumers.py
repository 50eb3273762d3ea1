"""Handlers of the group `broken` fail on every message told to, until the release that mends them runs.

A message's value: {"n": number, "bug": whether it meets the bug, "sleep": seconds}.
"""

from __future__ import annotations

import os
import time

import bus
from tests.acceptance.mended.topics import hints, invoices
from tests.acceptance.shop import ledger

SOON = bus.RetryPolicy(attempts=2, delay=0.05, factor=1.0, jitter=0.0)


def _write(what: str, group: str, message: bus.Message) -> None:
    ledger.write(
        what, message.topic, message.partition, message.id, group, message.value["n"], message.attempt
    )


def _broken(message: bus.Message) -> None:
    _write("start", "broken", message)
    if message.value.get("bug") and not os.environ.get("MENDED"):
        raise RuntimeError("the bug")
    time.sleep(message.value.get("sleep", 0))
    _write("end", "broken", message)


def _sound(message: bus.Message) -> None:
    _write("end", "sound", message)


for _topic, _ordering in ((invoices, "key"), (hints, "none")):
    bus.subscribe(_topic, group="broken", ordering=_ordering, retry=SOON)(_broken)
    bus.subscribe(_topic, group="sound", ordering=_ordering, retry=SOON)(_sound)
