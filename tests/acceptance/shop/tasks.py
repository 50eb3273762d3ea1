"""An ordinary Celery task of the same project."""

from celery import shared_task

from tests.acceptance.shop import ledger


@shared_task
def add(one: int, other: int) -> None:
    ledger.write("sum", one + other)
