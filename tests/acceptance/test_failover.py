"""Another server takes over, with older data: consuming goes on, and everything fits together there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.client import Bus
from bus.streams.embedded import EmbeddedServer
from tests.acceptance.shopping import GROUPS, Shop
from tests.proxy import Proxy
from tests.servers import broker_url, valkey_server
from tests.waiting import wait_until

TOPICS = ("keyed", "strict", "loose", "batches")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with valkey_server(tmp_path / "broker") as server:
        yield server


def linked(replica: Bus) -> bool:
    return b"master_link_status:up" in replica.client.call("INFO", "replication")


def waiting(shop: Shop) -> int:
    groups = [shop.group(topic) for topic in TOPICS]
    return sum((group.retrying or 0) + (group.held or 0) for group in groups)


@pytest.mark.timeout(300)
def test_after_a_failover_to_a_replica_that_lags_nothing_is_lost_held_for_ever_or_out_of_order(
    broker: EmbeddedServer, prefix: str, tmp_path: Path
) -> None:
    with (
        EmbeddedServer(tmp_path / "first", port=0) as first,
        EmbeddedServer(tmp_path / "second", port=0) as second,
        Proxy(first.url) as proxy,
    ):
        shop, replica = Shop(first.url, prefix, tmp_path), Bus(second.url, prefix=prefix)
        try:
            shop.environment["BUS_URL"] = proxy.url
            shop.environment["CELERY_BROKER_URL"] = broker_url(broker.url)
            _fail_over(shop, replica, first, second, proxy)
        finally:
            shop.end()
            replica.close()


def _fail_over(shop: Shop, replica: Bus, first: EmbeddedServer, second: EmbeddedServer, proxy: Proxy) -> None:
    # Given a replica that has all messages, and workers in the middle of them, with failing keys
    replica.client.call("REPLICAOF", "127.0.0.1", first.url.rpartition(":")[2].partition("/")[0])
    wait_until(lambda: linked(replica), 30, "the replica to be linked")
    for topic in TOPICS:
        shop.publish(topic, 30, sleep=0.005)
        shop.publish(topic, 10, first=30, postpone=4.0)
        shop.publish(topic, 10, first=40, fail=1)
        shop.publish(topic, 350, first=50, sleep=0.005)
    assert shop.bus.client.call("WAIT", 1, 10_000) == 1
    for name in ("one", "two"):
        shop.worker(name, "-c", "2").wait_ready()
    wait_until(lambda: waiting(shop) > 30, 60, "messages to wait behind failing ones")

    # When the replica hears no more, the workers go on for a while, and then it takes over
    replica.client.call("REPLICAOF", "NO", "ONE")
    seen = len(shop.lines("end"))
    shop.wait_lines(seen + 150)
    proxy.lead_to(second.url)
    shop.bus.close()
    shop.bus = Bus(second.url, prefix=shop.bus.settings.prefix)

    # Then all of it is handled, what was published before and after, in order, and nothing waits for ever
    for topic in TOPICS:
        shop.publish(topic, 100, first=400)
    for topic in TOPICS:
        shop.wait_idle(topic, 90)
    wait_until(lambda: waiting(shop) == 0, 30, "nothing to wait")
    for topic in TOPICS:
        shop.assert_each(topic, 500)
    shop.assert_order("keyed", by=lambda line: line.key)
    shop.assert_order("strict", by=lambda line: line.partition)
    assert all(shop.dead_letters(topic) == [] for topic in GROUPS)
