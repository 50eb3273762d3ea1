"""A Celery broker that takes connections and answers nothing: a worker that runs consumes all the same."""

from __future__ import annotations

import json
import os
import signal
import socket
import time

import pytest

from bus.client import Bus
from bus.streams.embedded import EmbeddedServer
from tests import nursery
from tests.acceptance.shopping import Shop
from tests.amqp_broker import AmqpBroker
from tests.proxy import Proxy
from tests.waiting import wait_until

SEND = "from workers import app; app.send_task('tests.acceptance.shop.tasks.add', ({0}, 0))"

#: As docs/operations.md advises.
ADVISED = {"health_check_interval": 5, "retry_on_timeout": True, "socket_timeout": 5}


def send_task(shop: Shop, number: int) -> None:
    nursery.run(["-c", SEND.format(number)], shop.environment)


def publish_for(shop: Shop, seconds: int) -> int:
    """Publish one message after the other, each when the one before was handled, after a first that was: how
    many there are then. None may wait for long."""
    began, longest, number = time.monotonic(), 0.0, 1
    while time.monotonic() < began + seconds:
        sent = time.monotonic()
        shop.publish("keyed", 1, first=number)
        number += 1
        shop.wait_lines(number, topic="keyed", timeout=60)
        longest = max(longest, time.monotonic() - sent)
        time.sleep(0.1)
    print("longest wait", longest, "messages", number)
    assert longest < 15
    return number


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("pool", "seconds"), [("prefork", 60), ("threads", 20)])
def test_messages_are_handled_while_the_broker_is_frozen_and_tasks_are_run_after_it(
    shop: Shop, broker: EmbeddedServer, pool: str, seconds: int
) -> None:
    # Given a worker with all that Celery does by the broker: events, heartbeats, gossip, mingle
    worker = shop.worker("one", "-c", "2", "--pool", pool, "-E", chatty=True).wait_ready()
    shop.publish("keyed", 1)
    shop.wait_lines(1, topic="keyed")
    # When the broker is frozen, while ordinary tasks are under way
    send_task(shop, 1)
    broker.freeze()
    # Then messages are handled all the time
    number = publish_for(shop, seconds)
    # And when it is back, ordinary tasks run
    broker.thaw()
    send_task(shop, 2)
    wait_until(lambda: "sum 2" in shop.ledger.read_text(), 60, "the task")
    shop.assert_each_once("keyed", number)
    assert worker.stop() == 0


@pytest.mark.timeout(200)
def test_a_worker_stops_while_its_broker_is_frozen(shop: Shop, broker: EmbeddedServer) -> None:
    worker = shop.worker("one", "-c", "2", "-E", chatty=True).wait_ready()
    shop.publish("keyed", 20)
    shop.wait_idle("keyed")
    broker.freeze()
    worker.signal(signal.SIGTERM)
    worker.wait(90)
    # Its lanes are free at once, not only when somebody finds it dead
    assert set(shop.owners("keyed")) == {None}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_worker_that_starts_beside_a_silent_broker_consumes_and_ends_when_told(
    shop: Shop, scheme: str
) -> None:
    # Given a broker that takes connections (the kernel does) and never says a word
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        shop.environment["CELERY_BROKER_URL"] = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}//"
        # When a worker starts
        shop.publish("keyed", 20)
        worker = shop.worker("one", "-c", "2", "-E", chatty=True)
        # Then it consumes, and says what it does without
        shop.wait_lines(20, topic="keyed", timeout=60)
        assert worker.says("The Celery broker is away; consuming from the bus goes on")
        # And it ends when it is told to, and gives its lanes back
        shop.wait_idle("keyed")
        worker.signal(signal.SIGTERM)
        worker.wait(60)
        shop.assert_each_once("keyed", 20)
        assert set(shop.owners("keyed")) == {None}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_consumes_beside_a_broker_that_is_frozen_as_it_starts_and_runs_tasks_after_it(
    shop: Shop, broker: EmbeddedServer, pool: str
) -> None:
    send_task(shop, 1)
    shop.publish("keyed", 20)
    broker.freeze()
    worker = shop.worker("one", "-c", "2", "--pool", pool, "-E", chatty=True)
    shop.wait_lines(20, topic="keyed", timeout=60)
    broker.thaw()
    worker.wait_ready()
    wait_until(lambda: "sum 1" in shop.ledger.read_text(), 60, "the task")
    shop.publish("keyed", 20, first=20)
    shop.wait_idle("keyed")
    shop.assert_each_once("keyed", 40)
    assert worker.stop() == 0


@pytest.mark.timeout(200)
def test_a_process_that_dies_as_the_first_connection_to_the_broker_is_made_does_not_end_the_worker(
    shop: Shop, broker: EmbeddedServer
) -> None:
    # Given a worker that consumes, and was never connected to its broker
    shop.publish("keyed", 20)
    broker.freeze()
    worker = shop.worker("one", "-c", "2", "-E", chatty=True)
    shop.wait_lines(20, topic="keyed", timeout=60)
    # When one of its processes dies while it is connecting (it waits a second for the answers of others)
    broker.thaw()
    wait_until(lambda: worker.says("The Celery broker is back"), 60, "the broker")
    os.kill(worker.children()[0], signal.SIGKILL)
    # Then the worker goes on
    worker.wait_ready()
    shop.publish("keyed", 20, first=20)
    shop.wait_idle("keyed")
    shop.assert_each_once("keyed", 40)
    assert worker.stop() == 0


@pytest.mark.timeout(200)
def test_connections_that_go_silent_beside_a_broker_that_lives_do_not_stop_consuming(
    shop: Shop, broker: EmbeddedServer
) -> None:
    # Given a worker whose broker is behind something that forgets connections, as firewalls do
    with Proxy(broker.url) as proxy:
        shop.environment["CELERY_BROKER_URL"] = proxy.url
        worker = shop.worker("one", "-c", "2", "-E", chatty=True).wait_ready()
        shop.publish("keyed", 1)
        shop.wait_idle("keyed")
        # When those that it has go silent
        assert proxy.hold() > 0
        # Then messages are handled all the time, and its lanes are free once it is told to stop
        number = publish_for(shop, 30)
        shop.assert_each_once("keyed", number)
        worker.signal(signal.SIGTERM)
        worker.wait(90)
        assert set(shop.owners("keyed")) == {None}


@pytest.mark.timeout(300)
def test_with_the_settings_that_we_advise_ordinary_tasks_run_soon_after_connections_went_silent(
    shop: Shop, broker: EmbeddedServer
) -> None:
    # Given a worker whose broker is behind something that forgets connections, set as docs/operations.md says
    straight = shop.environment["CELERY_BROKER_URL"]
    advised = json.dumps({"CELERY_BROKER_TRANSPORT_OPTIONS": ADVISED})
    with Proxy(broker.url) as proxy:
        shop.environment |= {"CELERY_BROKER_URL": proxy.url, "SHOP_SETTINGS": advised}
        worker = shop.worker("one", "-c", "2", "-E", chatty=True).wait_ready()
        send_task(shop, 1)
        wait_until(lambda: "sum 1" in shop.ledger.read_text(), 60, "the first task")
        shop.publish("keyed", 1)
        # When those that it has go silent (and the broker waits for nobody behind them any more)
        assert proxy.hold() > 0
        wait_until(lambda: no_client_waits(broker), 60, "the broker to give up")
        began = time.monotonic()
        shop.environment["CELERY_BROKER_URL"] = straight
        for number in range(2, 7):
            send_task(shop, number)
        # Then tasks that are sent meanwhile are run, none is lost, and messages are handled
        shop.publish("keyed", 1, first=1)
        shop.wait_lines(2, topic="keyed", timeout=15)
        tasks = [f"sum {number}" for number in range(2, 7)]
        wait_until(lambda: all(task in shop.ledger.read_text() for task in tasks), 90, "the tasks")
        print("the tasks had run after", time.monotonic() - began)
        assert worker.stop() == 0


def no_client_waits(server: EmbeddedServer) -> bool:
    bus = Bus(server.url)
    listed = bus.client.call("CLIENT", "LIST").decode()
    bus.close()
    return not any("cmd=brpop" in line and "flags=b" in line for line in listed.splitlines())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("heartbeat", [None, 2], ids=["no heartbeats", "heartbeats"])
def test_an_amqp_broker_that_goes_silent_does_not_stop_consuming(shop: Shop, heartbeat: int | None) -> None:
    # Given a worker that consumes from its AMQP broker, events and all
    with AmqpBroker() as broker:
        shop.environment["CELERY_BROKER_URL"] = broker.url
        shop.environment["SHOP_SETTINGS"] = json.dumps({"CELERY_BROKER_HEARTBEAT": heartbeat})
        worker = shop.worker("one", "-c", "2", "-E", chatty=True).wait_ready()
        assert broker.consumed
        shop.publish("keyed", 1)
        shop.wait_idle("keyed")
        # When the broker takes and says nothing any more
        assert broker.silence() > 0
        # Then messages are handled all the time; with heartbeats the silence is noticed
        number = publish_for(shop, 30)
        shop.assert_each_once("keyed", number)
        if heartbeat:
            wait_until(lambda: worker.says("Connection to broker lost"), 30, "the silence to be noticed")
            shop.publish("keyed", 20, first=number)
            shop.wait_idle("keyed")
            shop.assert_each_once("keyed", number + 20)
        # And its lanes are free once it is told to stop; what was noticed is not waited for any more
        worker.signal(signal.SIGTERM)
        code = worker.wait(20 if heartbeat else 90)
        print("exit code", code)
        assert set(shop.owners("keyed")) == {None}
        assert code == 0 or not heartbeat
