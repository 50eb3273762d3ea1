"""Atomic handlers that add up. A message with "die" kills its process between the commit and the settle.

Where the file BANK_FREEZE is there, the first pool process whose transaction begins stops itself (SIGSTOP)
before that statement.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from celery.signals import worker_process_init
from django.db import transaction
from django.db.backends.signals import connection_created
from django.db.models import F

import bus
from tests.acceptance.bank.models import Entry, Total
from tests.acceptance.bank.topics import amounts, forwarded, transfers

#: A kill, or a database that is busy, must not be what makes a dead letter.
PATIENT = bus.RetryPolicy(attempts=100, delay=0.05, factor=1.0, jitter=0.5)


def _book(group: str, message: bus.Message) -> None:
    n = message.value["n"]
    Entry.objects.create(group=group, n=n)
    Total.objects.filter(group=group).update(amount=F("amount") + n)
    if message.value.get("die") and message.attempt == 1:
        transaction.on_commit(_die)


def _die() -> None:
    with open(os.environ["BANK_DEATHS"], "a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


@worker_process_init.connect
def _in_pool(**_: Any) -> None:
    connection_created.connect(
        lambda connection, **_: connection.execute_wrappers.append(_freeze), weak=False
    )


def _freeze(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    """On SQLite BEGIN takes the lock, which would keep everybody out."""
    path = os.environ["BANK_FREEZE"]
    if sql.startswith(("BEGIN", "INSERT INTO")) and os.path.exists(path):
        os.rename(path, f"{path}.{os.getpid()}")
        os.kill(os.getpid(), signal.SIGSTOP)
    return execute(sql, params, many, context)


@bus.subscribe(amounts, group="single", atomic=True, retry=PATIENT)
def book(message: bus.Message) -> None:
    _book("single", message)


@bus.subscribe(amounts, group="batch", atomic=True, batch=50, retry=PATIENT)
def book_all(batch: Any) -> None:
    for message in batch:
        _book("batch", message)


@bus.subscribe(transfers, group="forward", atomic=True, retry=PATIENT)
def forward(message: bus.Message) -> None:
    """One message in, one out, in the same transaction."""
    forwarded.publish_in_transaction({"n": message.value["n"]}, key=message.key)
    _book("forward", message)


@bus.subscribe(forwarded, group="collect", atomic=True, retry=PATIENT)
def collect(message: bus.Message) -> None:
    _book("collect", message)
