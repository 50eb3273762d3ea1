"""A handler that fails for the key FAILING_KEY while the file HEALED does not exist."""

from __future__ import annotations

import os
from pathlib import Path

import bus
from tests.acceptance.shop import ledger
from tests.acceptance.stubborn.topics import readings

#: So many attempts that no message becomes a dead letter within a test.
ENDLESS = bus.RetryPolicy(attempts=1_000_000, delay=0.1, factor=1.0, max_delay=0.1, jitter=0.0)


def _write(what: str, message: bus.Message) -> None:
    ledger.write(
        what,
        message.topic,
        message.partition,
        message.id,
        message.key,
        message.value["n"],
        message.attempt,
    )


@bus.subscribe(readings, group="meter", ordering="key", retry=ENDLESS)
def read(message: bus.Message) -> None:
    if message.key == os.environ["FAILING_KEY"] and not Path(os.environ["HEALED"]).exists():
        _write("fail", message)
        raise RuntimeError("this key is ill")
    _write("end", message)
