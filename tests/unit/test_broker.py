"""When a worker begins to consume without Celery's broker, and when it leaves the waiting to Celery."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workers.broker import PatientConsumer


@pytest.mark.parametrize(
    ("retry", "on_startup", "first", "retries"),
    [
        (True, None, True, True),
        (False, None, True, False),
        (True, False, True, False),
        (False, True, True, True),
        # Once it was connected the bus goes on, whatever Celery then does about its broker.
        (False, False, False, True),
    ],
)
def test_a_broker_that_the_project_tries_once_is_not_waited_for_at_the_start(
    retry: bool, on_startup: bool | None, first: bool, retries: bool
) -> None:
    consumer = PatientConsumer.__new__(PatientConsumer)
    conf = SimpleNamespace(broker_connection_retry=retry, broker_connection_retry_on_startup=on_startup)
    consumer.app, consumer.first_connection_attempt = SimpleNamespace(conf=conf), first

    assert consumer._retries() is retries
