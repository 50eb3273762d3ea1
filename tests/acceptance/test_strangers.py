"""Real workers beside somebody who writes by hand into everything that is theirs."""

from __future__ import annotations

import pytest

from bus.client import Bus
from tests import nursery
from tests.acceptance.shopping import GROUPS, Shop
from tests.waiting import wait_until

#: What gets junk, with all that may be written there; and its neighbours, of which nobody is harmed.
SICK, NEIGHBOURS = "keyed", ("strict", "loose", "batches", "awaited")

SEND = "from workers import app; app.send_task('tests.acceptance.shop.tasks.add', (1, 1))"


def junk(bus: Bus) -> list[list[object]]:
    """The nastiest: what once ended workers, or stopped partitions for ever."""
    group = GROUPS[SICK][0]
    keys, first, second = bus.keys, bus.keys.partition(SICK, 0), bus.keys.partition(SICK, 1)
    return [
        ["XADD", first.stream, "NOMKSTREAM", "*", "v", "1", "k", "a", "g", b"\xff"],
        ["XADD", first.stream, "NOMKSTREAM", "*", "x", b"\xff"],
        ["XADD", second.stream, "NOMKSTREAM", "18446744073709551615-5", "v", '{"n": -1}'],
        [
            "HSET",
            first.state(group),
            "5-5",
            b"\xff",
            "suspect:0",
            "x",
            "dead",
            "x",
            "trimmed",
            "x",
            b"5\xff",
            "x",
        ],
        ["ZADD", first.retry(group), "-inf", b"\xff", "0", "junk", "inf", "5"],
        ["ZADD", first.held(group), "5", b"\xff", "-5", "junk"],
        ["XADD", first.dead(group), "*", "id", b"\xff", "attempts", "x"],
        ["HSET", keys.topics, "stray", b"\xff", b"\xff", "{}"],
        ["HSET", keys.groups, f"{SICK}/stray", b"{}", "stray", "[", b"\xff/\xff", "1"],
        ["HSET", keys.meta, "layout", "x"],
        ["XADD", keys.control, "*", b"\xff", b"\xff"],
        ["ZADD", keys.due, "0", b"\xff", "-inf", f"{SICK}:0", "0", "9" * 5000],
        # another type, in a partition of its own for each
        *(
            command
            for number, key in enumerate(
                (
                    bus.keys.partition(SICK, 2).stream,
                    bus.keys.partition(SICK, 3).state(group),
                    bus.keys.partition(SICK, 4).retry(group),
                    bus.keys.partition(SICK, 5).dead(group),
                    bus.keys.partition(SICK, 6).held(group),
                    bus.keys.partition(SICK, 7).delayed,
                )
            )
            for command in (["DEL", key], ["RPUSH", key, str(number)])
        ),
    ]


def removal(bus: Bus) -> list[list[object]]:
    """What doctor says to do."""
    group = GROUPS[SICK][0]
    keys = bus.keys
    every = [bus.keys.partition(SICK, number) for number in range(GROUPS[SICK][1])]
    strange = [every[1].stream, every[2].stream, every[3].state(group), every[4].retry(group),
               every[5].dead(group), every[6].held(group), every[7].delayed, every[0].retry(group),
               every[0].held(group)]  # fmt: skip
    return [
        ["DEL", *strange],
        ["HDEL", every[0].state(group), "5-5", "suspect:0", "dead", b"5\xff"],
        ["HDEL", keys.topics, "stray", b"\xff"],
        ["HDEL", keys.groups, f"{SICK}/stray", "stray", b"\xff/\xff"],
        ["DEL", keys.meta, keys.due],
    ]


def handled(shop: Shop, topic: str, first: int, count: int) -> bool:
    return {line.n for line in shop.lines("end", topic)}.issuperset(range(first, first + count))


@pytest.mark.both_servers
def test_workers_go_on_beside_junk_in_every_kind_of_key(shop: Shop) -> None:
    # Given two workers at work
    workers = [shop.worker(name, "-c", "2").wait_ready() for name in ("one", "two")]
    for topic in GROUPS:
        shop.publish(topic, 60)
        wait_until(lambda topic=topic: handled(shop, topic, 0, 60), what=f"{topic} to be handled")

    # When somebody writes into all there is
    for command in junk(shop.bus):
        shop.bus.client.call(*command)

    # Then the neighbours go on, with messages that fail too; a worker that starts now as well
    for topic in NEIGHBOURS:
        shop.publish(topic, 60, first=100)
        shop.publish(topic, 5, first=160, fail=1)
    workers[0].stop()
    workers[0] = shop.worker("three", "-c", "2").wait_ready()
    for topic in NEIGHBOURS:
        shop.publish(topic, 20, first=200)
        wait_until(
            lambda topic=topic: handled(shop, topic, 100, 65) and handled(shop, topic, 200, 20),
            what=f"{topic} to be handled beside the junk",
        )
    # so do the ordinary tasks of the project,
    nursery.run(["-c", SEND], shop.environment)
    wait_until(lambda: "sum 2" in shop.ledger.read_text(), what="the ordinary task")
    # and the partition whose keys have junk in them, but are of the right type.
    shop.bus.client.call("XADD", shop.bus.keys.partition(SICK, 0).stream, "*", "v", '{"n": 500}', "k", "a")
    wait_until(lambda: handled(shop, SICK, 500, 1), what="the partition with junk in it")

    # And when it is removed all is as before.
    assert all(worker.runs for worker in workers)
    for command in removal(shop.bus):
        shop.bus.client.call(*command)
    shop.publish(SICK, 100, first=600)
    wait_until(lambda: handled(shop, SICK, 600, 100), what=f"{SICK} to be handled again")
    for worker in workers:
        assert worker.runs
        assert not worker.says("has ended"), worker.log.read_text(errors="replace")[-4000:]
        assert worker.stop() == 0
