"""Groups and streams vanish, or come back older, under running workers: consuming goes on from the mark."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bus import observe
from bus.client import Bus
from bus.streams.embedded import EmbeddedServer
from tests.acceptance.shopping import GROUPS, Shop
from tests.waiting import wait_until


def streams(shop: Shop, topic: str) -> list[str]:
    return [shop.bus.keys.partition(topic, number).stream for number in range(GROUPS[topic][1])]


def marked_at_the_end(shop: Shop, topic: str) -> bool:
    """The mark of every partition is its last id."""
    partitions = observe.partitions(shop.bus, topic)
    marks = [
        shop.bus.client.call("GET", shop.bus.keys.partition(topic, each.partition).mark(GROUPS[topic][0]))
        for each in partitions
    ]
    return all(
        each.next_offset == 0 or (mark is not None and mark.decode() == each.last_id)
        for each, mark in zip(partitions, marks, strict=True)
    )


@pytest.mark.both_servers
@pytest.mark.parametrize("topic", ["keyed", "loose"])
def test_a_destroyed_group_goes_on_from_its_mark_and_keeps_what_waited(shop: Shop, topic: str) -> None:
    # Given settled messages, and some that wait for a retry or behind one
    shop.worker().wait_ready()
    shop.wait_owned("keyed")
    shop.publish(topic, 200)
    shop.wait_idle(topic)
    wait_until(lambda: marked_at_the_end(shop, topic), 30, "the marks")
    shop.publish(topic, 1, first=200, postpone=8)
    shop.publish(topic, 40, first=201)
    shop.wait_lines(240 if topic == "loose" else 238, topic=topic)

    wait_until(lambda: marked_at_the_end(shop, topic), 30, "the marks")

    # When the group is destroyed under the worker
    for stream in streams(shop, topic):
        shop.bus.client.call("XGROUP", "DESTROY", stream, GROUPS[topic][0])
    shop.publish(topic, 100, first=241)

    # Then nothing settled comes again, and nothing that waited is lost
    shop.wait_lines(341, topic=topic, timeout=40)
    shop.wait_idle(topic)
    shop.assert_each_once(topic, 341)
    lag = shop.group(topic).lag
    assert lag is not None
    assert lag.exact


@pytest.mark.both_servers
def test_a_deleted_stream_begins_anew_and_nothing_settled_comes_again(shop: Shop) -> None:
    shop.worker().wait_ready()
    shop.publish("keyed", 200)
    shop.wait_lines(200)
    shop.wait_idle("keyed")
    for stream in streams(shop, "keyed"):
        shop.bus.client.call("DEL", stream)
    shop.publish("keyed", 100, first=200)
    shop.wait_lines(300, timeout=40)
    shop.wait_idle("keyed")
    shop.assert_each_once("keyed", 300)


@pytest.mark.both_servers
def test_after_flushall_workers_and_publishers_go_on_by_themselves(own_shop: Shop) -> None:
    shop = own_shop
    shop.worker().wait_ready()
    shop.publish("keyed", 100)
    shop.wait_lines(100)
    shop.wait_idle("keyed")
    shop.bus.client.call("FLUSHALL")
    shop.publish("keyed", 100, first=100)
    shop.wait_lines(200, timeout=40)
    shop.wait_idle("keyed")
    shop.assert_each_once("keyed", 200)
    assert sorted(group.name for group in shop.bus.registry.groups()) == sorted(g for g, _ in GROUPS.values())


@pytest.mark.both_servers
def test_a_server_that_comes_back_with_older_data_does_not_repeat_what_was_settled(
    own_shop: Shop, own_server: EmbeddedServer, tmp_path: Path
) -> None:
    # Given a copy of the server's files from the middle of the work
    shop = own_shop
    shop.migrate()
    worker = shop.worker("one", "-c", "2").wait_ready()
    shop.publish("keyed", 500, sleep=0.01)
    shop.wait_lines(150)
    older = tmp_path / "older"
    own_server.freeze()
    shutil.copytree(own_server.directory, older)
    own_server.thaw()
    assert len(shop.lines()) < 400

    # And all that came later is settled, and its marks are copied to the database
    shop.wait_lines(500)
    shop.wait_idle("keyed")
    ends = [each.last_id for each in observe.partitions(shop.bus, "keyed")]
    wait_until(lambda: shop.copied_marks("keyed") == ends, 40, "the copies of the marks", 0.2)

    # When the server is restored from the copy
    own_server.kill()
    shutil.rmtree(own_server.directory / "appendonlydir")
    shutil.copytree(older / "appendonlydir", own_server.directory / "appendonlydir")
    own_server.start()
    fresh = Bus(own_server.url, prefix=shop.bus.settings.prefix)
    wait_until(lambda: fresh.client.call("PING"), 20, "the server")
    shop.publish("keyed", 50, first=500)

    # Then only what is published now is new
    shop.wait_lines(550, timeout=60)
    shop.wait_idle("keyed")
    shop.assert_each_once("keyed", 550)
    assert worker.says("Redis came back with older data")
    assert worker.stop() == 0
