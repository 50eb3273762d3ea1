"""When a worker begins to consume without Celery's broker, and when it leaves the waiting to Celery."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from celery.concurrency.asynpool import AsynPool
from celery.worker.consumer import Consumer
from kombu.asynchronous import Hub

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


class Opened:
    """A connection of an AMQP library, as far as it is closed."""

    def __init__(self) -> None:
        self.collected = 0

    def collect(self) -> None:
        self.collected += 1


def lose(exc: Exception, monkeypatch: pytest.MonkeyPatch) -> tuple[Opened, Opened]:
    """A worker's AMQP connections, after this error: the main one, that of events."""
    told: list[Exception] = []
    monkeypatch.setattr(Consumer, "on_connection_error_after_connected", lambda _, exc: told.append(exc))
    consumer = PatientConsumer.__new__(PatientConsumer)
    ends = Opened(), Opened()
    main, events = (
        SimpleNamespace(transport=SimpleNamespace(driver_type="amqp"), _connection=end) for end in ends
    )
    consumer.hub, consumer.connection, consumer.connection_errors = None, main, (OSError,)
    consumer.event_dispatcher = SimpleNamespace(connection=events)
    consumer.on_connection_error_after_connected(exc)
    assert told == [exc]
    return ends


def test_with_a_lost_amqp_connection_goes_that_of_events_and_neither_takes_leave_of_the_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [end.collected for end in lose(OSError("lost"), monkeypatch)] == [1, 1]


def test_an_amqp_channel_that_fails_closes_no_connection_without_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [end.collected for end in lose(LookupError("no queue"), monkeypatch)] == [0, 0]


def test_a_new_connection_passes_over_a_process_whose_end_was_seen_and_that_is_not_reaped_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a pool with a process of which Celery has seen the end, and one that lives
    monkeypatch.setattr(Consumer, "ensure_connected", lambda _, conn: conn)
    pool, hub, (reader, writer) = AsynPool.__new__(AsynPool), Hub(), os.pipe()
    ended, living = SimpleNamespace(_sentinel_poll=None), SimpleNamespace(_sentinel_poll=reader)
    consumer = PatientConsumer.__new__(PatientConsumer)
    consumer.hub, consumer.pool, consumer.connection = None, SimpleNamespace(_pool=pool), None
    with pytest.raises(ValueError, match="file descriptor is None"):  # as Celery has it
        pool._track_child_process(ended, hub)
    # when the worker connects, twice, and enters its processes in the loop
    for _ in range(2):
        consumer.ensure_connected(None)
    for process in (ended, living):
        pool._track_child_process(process, hub)
    # then the one that lives is there
    assert list(hub.readers) == [reader]
    hub.close()
    os.close(writer)
    os.close(reader)
