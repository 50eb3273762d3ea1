"""A worker all of whose processes are busy for long passes on the lanes with work that it cannot serve."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.format.partition import partition_of
from tests.acceptance.shopping import GROUPS, Shop
from tests.waiting import wait_until

TOPIC, PARTITIONS = "keyed", GROUPS["keyed"][1]
KEYS, COUNT = 40, 400

#: A generous deadline, in seconds: nothing here depends on how fast the machine is.
SOON = 90

pytestmark = pytest.mark.timeout(400)


def a_key_of(partition: int) -> str:
    keys = (f"k{number}" for number in range(KEYS))
    return next(key for key in keys if partition_of(key, PARTITIONS) == partition)


def test_a_busy_worker_passes_on_its_lanes_with_work_and_gets_them_back_when_it_is_idle(
    shop: Shop, tmp_path: Path
) -> None:
    # Given two workers that share eight lanes, one of which has its only process in a handler without end
    one, two = shop.worker("one", "-c", "1").wait_ready(), shop.worker("two", "-c", "2").wait_ready()
    wait_until(lambda: [len(shop.lanes_of(each, TOPIC)) for each in (one, two)] == [4, 4], SOON, "4 and 4")
    mine, end = shop.lanes_of(one, TOPIC), tmp_path / "end"
    stuck = min(mine)
    shop.bus.publish(TOPIC, {"n": 0, "until": str(end)}, key=a_key_of(stuck))
    shop.wait_lines(1, "start", TOPIC)
    [process] = one.children()

    # When work arrives in all lanes
    shop.publish(TOPIC, COUNT - 1, keys=KEYS, first=1)
    elsewhere = sum(partition_of(f"k{n % KEYS}", PARTITIONS) != stuck for n in range(1, COUNT))

    # Then the other worker does all of it but what is behind the message in hand
    shop.wait_lines(elsewhere, topic=TOPIC, timeout=SOON)
    lines = shop.lines("end", TOPIC)
    assert {line.partition for line in lines} == set(range(PARTITIONS)) - {stuck}
    assert {line.pid for line in lines} <= set(two.children())
    wait_until(lambda: shop.lanes_of(one, TOPIC) == {stuck}, SOON, "the lanes to be passed on")
    assert shop.lanes_of(two, TOPIC) == set(range(PARTITIONS)) - {stuck}
    assert one.says("All slots are busy")

    # And the message in hand was never interrupted: it ends once, at its first attempt, where it began
    end.touch()
    shop.wait_idle(TOPIC)
    assert [(line.attempt, line.pid) for line in shop.lines("start", TOPIC) if line.n == 0] == [(1, process)]
    assert [(line.attempt, line.pid) for line in shop.lines("end", TOPIC) if line.n == 0] == [(1, process)]
    shop.assert_each_once(TOPIC, COUNT)
    shop.assert_order(TOPIC, lambda line: line.key)

    # And as it is idle now, the lanes are divided evenly again, and both work
    wait_until(lambda: [len(shop.lanes_of(each, TOPIC)) for each in (one, two)] == [4, 4], SOON, "4 and 4")
    shop.publish(TOPIC, COUNT, keys=KEYS, first=COUNT)
    shop.wait_idle(TOPIC)
    shop.assert_each_once(TOPIC, 2 * COUNT)
    shop.assert_order(TOPIC, lambda line: line.key)
    later = {line.pid for line in shop.lines("end", TOPIC) if line.n >= COUNT}
    assert process in later
    assert later & set(two.children())


def test_a_busy_worker_that_is_alone_gives_nothing_up(shop: Shop, tmp_path: Path) -> None:
    # Given one worker, whose only process is in a handler without end while work arrives in all lanes
    one, end = shop.worker("one", "-c", "1").wait_ready(), tmp_path / "end"
    shop.wait_owners(TOPIC, one)
    shop.bus.publish(TOPIC, {"n": 0, "until": str(end)}, key=a_key_of(0))
    shop.wait_lines(1, "start", TOPIC)
    shop.publish(TOPIC, COUNT - 1, keys=KEYS, first=1)

    # When it would pass on what it cannot serve
    wait_until(lambda: one.says("All slots are busy"), SOON, "it to say that it is busy")

    # Then it keeps all of it, and does it as soon as it can
    assert shop.lanes_of(one, TOPIC) == set(range(PARTITIONS))
    end.touch()
    shop.wait_idle(TOPIC)
    assert shop.lanes_of(one, TOPIC) == set(range(PARTITIONS))
    shop.assert_each_once(TOPIC, COUNT)
    shop.assert_order(TOPIC, lambda line: line.key)
