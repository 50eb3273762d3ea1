"""Publishers in a crowd go together, and each hears of its own message."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from bus.client import Bus
from bus.errors import BusError, PublishUncertain, ServerError
from bus.streams import convoy
from bus.streams.embedded import EmbeddedServer
from tests.proxy import Proxy

THREADS, EACH = 24, 50


@pytest.fixture(autouse=True)
def crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third caller on it is a crowd."""
    monkeypatch.setattr(convoy, "CROWD", 2)


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.topic("orders", partitions=4)
    bus.registry.spec("orders")
    yield bus
    bus.close()


def together(work: Callable[[int], None], threads: int = THREADS) -> None:
    start = threading.Barrier(threads)

    def run(number: int) -> None:
        start.wait()
        work(number)

    all_threads = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in all_threads:
        thread.start()
    for thread in all_threads:
        thread.join()


def stored(bus: Bus) -> dict[tuple[int, str], bytes]:
    streams = {number: bus.keys.partition("orders", number).stream for number in range(4)}
    return {
        (number, id.decode()): fields[1]
        for number, stream in streams.items()
        if bus.client.call("TYPE", stream) == b"stream"
        for id, fields in bus.client.call("XRANGE", stream, "-", "+")
    }


def test_every_receipt_belongs_to_its_message(bus: Bus) -> None:
    receipts: dict[int, tuple[int, str]] = {}

    def publish(thread: int) -> None:
        for step in range(EACH):
            number = thread * EACH + step
            how = {"message_id": f"id-{number}"} if number % 5 == 0 else {}
            receipt = bus.publish("orders", number, key=str(thread), **how)  # type: ignore[arg-type]
            receipts[number] = receipt.partition, receipt.id

    together(publish)
    entries = stored(bus)
    assert {number: int(entries[place]) for number, place in receipts.items()} == {
        number: number for number in range(THREADS * EACH)
    }
    assert len(entries) == THREADS * EACH


def test_an_error_of_one_does_not_touch_the_others(bus: Bus) -> None:
    wrong = bus.publish("orders", 0, key="wrong").partition
    bus.client.call("DEL", bus.keys.partition("orders", wrong).stream)
    bus.client.call("SET", bus.keys.partition("orders", wrong).stream, "something else")
    fates: dict[int, BusError | None] = {}

    def publish(thread: int) -> None:
        for step in range(EACH):
            number = thread * EACH + step
            try:
                receipt = bus.publish("orders", number, key=f"k{number}")
            except ServerError as error:
                fates[number] = error
            else:
                fates[number] = None
                assert receipt.partition != wrong

    together(publish)
    assert sorted(int(value) for value in stored(bus).values()) == sorted(
        number for number, error in fates.items() if error is None
    )
    assert {error.code for error in fates.values() if isinstance(error, ServerError)} == {"WRONGTYPE"}
    assert len(fates) == THREADS * EACH


def test_a_connection_that_breaks_is_uncertain_for_all_who_went_together(
    server: EmbeddedServer, bus: Bus
) -> None:
    with Proxy(server.url) as proxy:
        proxied = Bus(proxy.url, prefix=bus.settings.prefix)
        proxied.topic("orders", partitions=4)
        proxied.registry.spec("orders")
        proxy.drop_replies(20)
        certain: list[int] = []
        uncertain: list[int] = []

        def publish(thread: int) -> None:
            for step in range(EACH):
                number = thread * EACH + step
                try:
                    proxied.publish("orders", number)
                except PublishUncertain:
                    uncertain.append(number)
                else:
                    certain.append(number)

        together(publish)
        proxied.close()
    there = sorted(int(value) for value in stored(bus).values())
    assert uncertain
    assert len(there) == len(set(there))
    assert set(certain) <= set(there) <= set(certain) | set(uncertain)
    assert len(certain) + len(uncertain) == THREADS * EACH


def test_a_child_that_was_forked_from_the_crowd_begins_with_an_empty_line(bus: Bus) -> None:
    bus.publisher._convoy._inside = 100
    bus.publisher._convoy._leaders = 100
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            bus.publish("orders", 1)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    bus.publisher._convoy._begin()
    assert list(stored(bus).values()) == [b"1"]
