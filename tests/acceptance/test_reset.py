"""A group is reset under real workers and load: they go on from the new position, and from there alone."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from bus.operating import positions, targets
from tests.acceptance.shopping import GROUPS, Shop
from tests.waiting import wait_until

FIRST, MORE, OFFSET = 1_500, 1_500, 40


@pytest.mark.both_servers
@pytest.mark.timeout(240)
@pytest.mark.parametrize("topic", ["keyed", "strict", "loose", "batches"])
def test_a_group_is_replayed_from_an_offset_while_messages_come_and_a_worker_is_killed(
    shop: Shop, topic: str
) -> None:
    # Given two workers that have handled messages
    group, partitions = GROUPS[topic]
    workers = [shop.worker(name).wait_ready() for name in ("one", "two")]
    shop.publish(topic, FIRST)
    shop.wait_lines(FIRST, topic=topic)
    shop.wait_idle(topic)
    streams = [shop.bus.keys.partition(topic, number).stream for number in range(partitions)]
    before = {
        f"{number}/{entry[0].decode()}"
        for number, stream in enumerate(streams)
        for entry in shop.bus.client.call("XRANGE", stream, "-", "+", "COUNT", OFFSET)
    }
    # When the group is reset to an offset, while more messages come and one worker is killed
    publisher = threading.Thread(target=shop.publish, args=(topic, MORE), kwargs={"first": FIRST})
    publisher.start()
    wait_until(lambda: len(shop.lines("end", topic)) > FIRST + 50, 60, "some of them to be handled")
    killer = threading.Thread(target=lambda: os.killpg(workers[0].pid, signal.SIGKILL))
    killer.start()
    began, ended = {}, {}
    for number in range(partitions):
        began[number] = time.monotonic_ns()
        plan = positions.plan(shop.bus, topic, group, targets.offset(OFFSET), partitions=[number])
        [move] = positions.reset(shop.bus, plan).moves
        ended[number] = time.monotonic_ns()
        assert move.after.offset == OFFSET
    publisher.join()
    killer.join()
    # Then every message from there on is handled, once more or for the first time
    everything = {
        f"{number}/{entry[0].decode()}"
        for number, stream in enumerate(streams)
        for entry in shop.bus.client.call("XRANGE", stream, "-", "+")
    }
    assert len(everything) == FIRST + MORE

    def handled(since: dict[int, int]) -> set[str]:
        lines = shop.lines("end", topic)
        return {f"{line.partition}/{line.id}" for line in lines if line.at > since[line.partition]}

    wait_until(lambda: handled(began) >= everything - before, 120, "all from the new position on", 0.2)
    shop.wait_idle(topic, 60)
    # And none before it
    assert not handled(ended) & before
    # And in the order of its key
    if topic in ("keyed", "strict"):
        seen: set[int] = set()
        last: dict[object, int] = {}
        for line in sorted(shop.lines("end", topic), key=lambda line: line.at):
            if line.at > ended[line.partition] and line.n not in seen:
                seen.add(line.n)
                by = line.key if topic == "keyed" else line.partition
                assert line.n > last.get(by, -1), f"{line} came after {last[by]}"
                last[by] = line.n


@pytest.mark.timeout(120)
def test_workers_go_on_from_the_new_position_within_two_seconds(shop: Shop) -> None:
    worker = shop.worker("one").wait_ready()
    shop.publish("keyed", 400)
    shop.wait_lines(400, topic="keyed")
    shop.wait_idle("keyed")
    positions.reset(shop.bus, positions.plan(shop.bus, "keyed", "bykey", targets.at("earliest")))
    began = time.monotonic()
    shop.wait_lines(401, topic="keyed", timeout=20)
    print("went on after", time.monotonic() - began, "s")
    shop.wait_lines(800, topic="keyed")
    shop.wait_idle("keyed")
    assert len(shop.lines("end", "keyed")) == 800
    assert worker.stop() == 0
