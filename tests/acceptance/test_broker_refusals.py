"""A Celery broker that answers with errors: too few replicas, a replica itself, its memory full. Consuming
goes on, and ordinary tasks run once it takes commands again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bus.client import Bus
from bus.streams.embedded import EmbeddedServer
from tests.acceptance.shopping import Shop, Worker
from tests.acceptance.test_broker import publish_for, send_task
from tests.waiting import wait_until
from workers.broker_probe import REFUSES

BACK = "The Celery broker is back"

#: What makes a server answer with errors, and what ends it.
TOO_FEW_REPLICAS = ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0")
REPLICA = ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE")  # nothing listens at that port
FULL = ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0")


@contextmanager
def refusing(server: EmbeddedServer, commands: tuple[str, str]) -> Iterator[None]:
    admin = Bus(server.url)
    try:
        admin.client.call(*commands[0].split())
        yield
        admin.client.call(*commands[1].split())
    finally:
        admin.close()


def wait_said(worker: Worker, text: str) -> None:
    wait_until(lambda: worker.says(text) or not worker.runs, 60, f"the worker to say {text!r}")
    assert worker.runs, worker.log.read_text()[-3000:]


def assert_task_runs(shop: Shop, number: int) -> None:
    send_task(shop, number)
    wait_until(lambda: f"sum {number}" in shop.ledger.read_text(), 60, "the task")


@pytest.mark.timeout(200)
@pytest.mark.parametrize("commands", [TOO_FEW_REPLICAS, REPLICA], ids=["too few replicas", "a replica"])
def test_messages_are_handled_while_the_broker_answers_with_errors_and_tasks_run_after_it(
    shop: Shop, broker: EmbeddedServer, commands: tuple[str, str]
) -> None:
    worker = shop.worker("one", "-c", "2", "-E", chatty=True).wait_ready()
    shop.publish("keyed", 1)
    shop.wait_lines(1, topic="keyed")
    with refusing(broker, commands):
        wait_said(worker, REFUSES)
        number = publish_for(shop, 10)
    wait_said(worker, BACK)
    assert_task_runs(shop, 1)
    shop.assert_each_once("keyed", number)
    assert worker.stop() == 0


@pytest.mark.timeout(200)
@pytest.mark.parametrize("commands", [TOO_FEW_REPLICAS, FULL], ids=["too few replicas", "full"])
def test_a_worker_that_starts_beside_a_broker_that_answers_with_errors_consumes_and_runs_tasks_after_it(
    shop: Shop, broker: EmbeddedServer, commands: tuple[str, str]
) -> None:
    with refusing(broker, commands):
        shop.publish("keyed", 20)
        worker = shop.worker("one", "-c", "2", "-E", chatty=True)
        wait_said(worker, REFUSES)
        shop.wait_lines(20, topic="keyed")
    worker.wait_ready()
    assert_task_runs(shop, 1)
    shop.assert_each_once("keyed", 20)
    assert worker.stop() == 0


@pytest.mark.timeout(200)
@pytest.mark.parametrize("commands", [TOO_FEW_REPLICAS, REPLICA], ids=["too few replicas", "a replica"])
def test_a_worker_lives_through_errors_of_the_server_that_is_both_bus_and_broker(
    own_shop: Shop, own_server: EmbeddedServer, commands: tuple[str, str]
) -> None:
    worker = own_shop.worker("one", "-c", "2", "-E", chatty=True).wait_ready()
    own_shop.publish("keyed", 20)
    own_shop.wait_idle("keyed")
    with refusing(own_server, commands):
        wait_said(worker, REFUSES)
    wait_said(worker, BACK)
    own_shop.publish("keyed", 20, first=20)
    own_shop.wait_idle("keyed")
    own_shop.assert_each_once("keyed", 40)
    assert_task_runs(own_shop, 1)
    assert worker.stop() == 0


@pytest.mark.timeout(200)
def test_with_the_memory_of_bus_and_broker_full_workers_start_and_lose_their_connections_and_go_on(
    own_shop: Shop, own_server: EmbeddedServer
) -> None:
    own_shop.publish("keyed", 40)
    admin = Bus(own_server.url)
    with refusing(own_server, FULL):
        worker = own_shop.worker("one", "-c", "2", "-E", chatty=True)
        wait_said(worker, REFUSES)
        own_shop.wait_lines(40, topic="keyed")
    worker.wait_ready()
    with refusing(own_server, FULL):
        worker.log.write_text("")  # what follows is of the loss
        admin.client.call("CLIENT", "KILL", "TYPE", "normal")
        wait_said(worker, REFUSES)
    wait_said(worker, BACK)
    admin.close()
    own_shop.publish("keyed", 20, first=40)
    own_shop.wait_idle("keyed")
    own_shop.assert_each("keyed", 60)
    assert_task_runs(own_shop, 1)
    assert worker.stop() == 0


@pytest.mark.timeout(100)
def test_a_project_that_tries_its_broker_once_has_a_worker_that_ends_by_the_broker_s_first_error(
    shop: Shop, broker: EmbeddedServer
) -> None:
    shop.environment["SHOP_SETTINGS"] = '{"CELERY_BROKER_CONNECTION_RETRY": false}'
    worker = shop.worker("one", "-c", "2").wait_ready()
    with refusing(broker, TOO_FEW_REPLICAS):
        assert worker.wait(60) == 1
    assert worker.says("has been disabled (app.conf.broker_connection_retry=False)")
