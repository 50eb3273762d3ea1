"""An ordinary Celery task of the same project."""

import time

from celery import shared_task

from tests.acceptance.shop import ledger


@shared_task
def add(one: int, other: int) -> None:
    ledger.write("sum", one + other)


@shared_task
def sleep(seconds: float) -> None:
    ledger.write("sleeping")
    time.sleep(seconds)
    ledger.write("slept")
