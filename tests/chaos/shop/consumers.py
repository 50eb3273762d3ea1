"""Handlers that fail, exit and dawdle by the seed, and write down what they did: those of one release."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import bus
from tests.chaos import sabotage
from tests.chaos.ledger import Handling, Ledger
from tests.chaos.shop.fate import Fate, fate
from tests.chaos.shop.grip import GROUP as GRIPPED
from tests.chaos.shop.grip import Grip
from tests.chaos.shop.models import Booking
from tests.chaos.shop.releases import BATCH, RELEASES, Serving
from tests.chaos.shop.trap import Trap

#: So many attempts that no message becomes a dead letter, however often its process is killed.
PATIENT = bus.RetryPolicy(attempts=100, delay=0.3, factor=1.5, max_delay=2.0, jitter=0.1)

_SEED = int(os.environ["CHAOS_SEED"])
_WORKER = os.environ["CHAOS_WORKER"]
_ledger = Ledger(os.environ["CHAOS_LEDGER"])
_grip = Grip(Path(os.environ["CHAOS_GRIP"])) if "CHAOS_GRIP" in os.environ else None


class Deed:
    """One attempt of a group at one message."""

    def __init__(self, group: str, message: bus.Message) -> None:
        self._group = group
        self._message = message
        self._name = message.value["id"]
        self.fate: Fate = fate(_SEED, group, self._name, message.attempt)

    def write(self, what: str) -> None:
        message = self._message
        _ledger.write(Handling(what, self._group, message.topic, message.partition, message.id, self._name,
                               message.key or "-", message.value["seq"], message.attempt, _WORKER,
                               os.getpid(), time.monotonic_ns()))  # fmt: skip

    def finish(self) -> None:
        """Meet the ending: a line, and whatever else."""
        if not self.fate.ending:
            self.write("end")
            return
        self.write("fail")
        if self.fate.ending == "exits":
            raise SystemExit(f"fated to exit at attempt {self._message.attempt}")
        if self.fate.ending == "interrupts":
            raise KeyboardInterrupt
        if self.fate.ending == "dies":
            os._exit(9)
        raise RuntimeError(f"fated to fail at attempt {self._message.attempt}")


def is_strange(message: bus.Message) -> bool:
    """A stranger wrote it; nobody published it."""
    return not isinstance(message.value, dict)


def book(message: bus.Message) -> None:
    Booking.objects.create(topic=message.topic, partition=message.partition, message=message.id)


def single(group: str, *, books: bool = False) -> Callable[[bus.Message], None]:
    def handle(message: bus.Message) -> None:
        if is_strange(message):
            return
        deed = Deed(group, message)
        deed.write("start")
        if _grip is not None and group == GRIPPED:
            _grip.hold(_WORKER, message.value["id"], message.id)
        if deed.fate.seconds:
            time.sleep(deed.fate.seconds)
        if books:
            book(message)
        deed.finish()

    return handle


def waiting(group: str) -> Callable[[bus.Message], Any]:
    async def handle(message: bus.Message) -> None:
        if is_strange(message):
            return
        deed = Deed(group, message)
        deed.write("start")
        if deed.fate.seconds:
            await asyncio.sleep(deed.fate.seconds)
        deed.finish()

    return handle


def batched(group: str, *, books: bool = False) -> Callable[[Any], None]:
    """Fails message by message. One that is to exit or die does so only as the first of its batch: whatever
    else the batch had done would be done again, by right."""

    def handle(batch: Iterable[bus.Message]) -> None:
        well: list[Deed] = []
        for message in batch:
            if is_strange(message):
                continue
            deed = Deed(group, message)
            deed.write("start")
            if deed.fate.seconds:
                time.sleep(deed.fate.seconds)
            if deed.fate.is_violent and not well:
                deed.finish()
            if deed.fate.ending == "fails":
                deed.write("fail")
                batch.retry(message)  # type: ignore[attr-defined] # bus.Batch
                continue
            if books:
                book(message)
            well.append(deed)
        for deed in well:
            deed.write("end")

    return handle


def _handler(serving: Serving) -> Callable[..., Any]:
    books = serving.form.startswith("atomic")
    if serving.form == "async":
        handler: Callable[..., Any] = waiting(serving.group)
    elif serving.form.endswith("batch"):
        handler = batched(serving.group, books=books)
    else:
        handler = single(serving.group, books=books)
    # A deployed function has a name of its own: this one has another in each release.
    handler.__name__ = handler.__qualname__ = f"{serving.group}_{serving.form}".replace(" ", "_")
    return handler


for _serving in RELEASES[os.environ["CHAOS_RELEASE"]]:
    bus.subscribe(
        _serving.topic,
        group=_serving.group,
        ordering=_serving.ordering,
        retry=PATIENT,
        retry_on=(BaseException,),
        batch=BATCH if _serving.form.endswith("batch") else None,
        atomic=_serving.form.startswith("atomic"),
    )(_handler(_serving))

# A worker that hangs is asked where, before it is killed.
faulthandler.register(signal.SIGUSR2)
Trap(Path(os.environ["CHAOS_TRAP"]), _WORKER).arm()
sabotage.commit(os.environ.get("CHAOS_SABOTAGE", ""))
