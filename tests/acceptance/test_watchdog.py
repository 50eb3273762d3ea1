"""A worker that can never consume again ends with a failing exit code, so that it is started anew."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.streams.embedded import EmbeddedServer
from tests.acceptance.shopping import Shop
from tests.servers import broker_url, valkey_server
from tests.waiting import wait_until


@pytest.fixture
def broker(shop: Shop, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """The broker of the shop's workers, beside the server of the bus."""
    with valkey_server(tmp_path / "broker") as server:
        shop.environment["CELERY_BROKER_URL"] = broker_url(server.url)
        yield server


@pytest.fixture
def doom(shop: Shop, tmp_path: Path) -> Path:
    """The file whose making dooms the workers of the shop."""
    shop.environment["DJANGO_SETTINGS_MODULE"] = "tests.acceptance.doomed.settings"
    shop.environment["DOOM"] = str(tmp_path / "doom")
    return tmp_path / "doom"


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("thread", "alone"), [("watcher", False), ("membership", True)])
def test_a_worker_whose_thread_has_ended_exits_non_zero_and_its_successor_does_the_rest(
    shop: Shop, broker: EmbeddedServer, doom: Path, thread: str, alone: bool
) -> None:
    # Given a worker in the middle of its work, with its broker or without
    shop.environment["DOOMED"] = thread
    first = shop.worker("one", "-c", "3").wait_ready()
    shop.publish("keyed", 400, sleep=0.02)
    shop.wait_lines(40, timeout=90)
    if alone:
        broker.kill()
        wait_until(lambda: first.says("The Celery broker is away"), 90, "the broker to be missed")

    # When a thread that it cannot do without ends by a bug
    doom.touch()

    # Then it says why, and ends with a failure
    assert first.wait(90) == 1
    why = f"the thread jitney-{thread} has ended"
    assert first.says("CRITICAL")
    assert first.says(f"This worker cannot consume any more ({why}) and exits, to be restarted.")

    # And another does what is left and what comes, and nothing again
    shop.publish("keyed", 100, first=400)
    if alone:
        broker.start()
    shop.environment["DOOMED"] = ""
    second = shop.worker("two", "-c", "3").wait_ready()
    shop.wait_idle("keyed", 90)
    shop.assert_each_once("keyed", 500)
    shop.assert_order("keyed", by=lambda line: line.key)
    assert second.stop() == 0


@pytest.mark.timeout(200)
def test_the_lanes_of_a_worker_whose_main_loop_stands_still_go_to_others(
    shop: Shop, doom: Path, broker: EmbeddedServer
) -> None:
    # Given two workers, each with lanes of its own
    shop.environment["DOOMED"] = "main loop"
    first = shop.worker("one", "-c", "2").wait_ready()
    shop.environment["DOOMED"] = ""
    second = shop.worker("two", "-c", "2").wait_ready()
    shop.wait_owners("keyed", first, second)
    shop.publish("keyed", 200, keys=50)
    shop.wait_idle("keyed")

    # When the main loop of one stands still
    doom.touch()
    began = time.monotonic()
    shop.publish("keyed", 100, first=200, keys=50)

    # Then the other handles everything, and it is said where the loop stands
    shop.wait_idle("keyed", 40)
    assert time.monotonic() - began < 25
    shop.wait_owners("keyed", second)
    shop.assert_each_once("keyed", 300)
    shop.assert_order("keyed", by=lambda line: line.key)
    assert first.says("main loop has stood still")
    assert first.says("in stuck")
    assert second.stop() == 0


@pytest.mark.timeout(200)
def test_a_worker_that_waits_for_its_broker_when_all_else_has_ended_ends_all_the_same(
    shop: Shop, doom: Path, broker: EmbeddedServer
) -> None:
    shop.environment["DOOMED"] = "farewell"
    worker = shop.worker("one", "-c", "2").wait_ready()
    shop.publish("keyed", 20)
    shop.wait_idle("keyed")
    worker.signal(signal.SIGTERM)
    wait_until(lambda: set(shop.owners("keyed")) == {None}, 20, "the lanes to be free")
    assert worker.wait(60) == 1
    assert worker.says("The end of this worker has hung for 3")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "signals",
    [
        "SIGQUIT header",
        "SIGQUIT body",
        "SIGTERM body",
        "SIGTERM SIGTERM body",
        "SIGTERM SIGQUIT header",
        "SIGTERM SIGQUIT body",
    ],
)
def test_signals_within_the_function_that_writes_a_job_end_the_worker_and_lose_nothing(
    shop: Shop, doom: Path, broker: EmbeddedServer, signals: str
) -> None:
    # Given two workers at work
    shop.environment["DOOMED"] = signals
    first = shop.worker("one", "-c", "2").wait_ready()
    shop.environment["DOOMED"] = ""
    second = shop.worker("two", "-c", "2").wait_ready()
    shop.wait_owners("keyed", first, second)
    shop.publish("keyed", 600, keys=50, sleep=0.02)
    shop.wait_lines(20)

    # When signals arrive as one starts a slice, in the middle of Celery's writing
    doom.touch()
    wait_until(lambda: not doom.exists(), 30, "the signals")
    began = time.monotonic()

    # Then it ends, and the other has its lanes within the liveness time
    code = first.wait(40)
    ended = time.monotonic() - began
    shop.wait_owners("keyed", second)
    owned = time.monotonic() - began
    print(f"{signals}: exit code {code} after {ended:.1f} s, lanes after {owned:.1f} s")
    assert owned < 25

    # And nothing is lost, and at most what was in hand is handled again
    shop.publish("keyed", 50, first=600, keys=50)
    shop.wait_idle("keyed")
    twice = shop.assert_each("keyed", 650)
    shop.assert_order("keyed", by=lambda line: line.key)
    assert twice == 0 if "SIGQUIT" not in signals else twice <= 20
    assert second.stop() == 0
