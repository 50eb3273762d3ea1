"""A deploy that changes the ordering of a group, worker by worker, while messages come in; one is killed."""

from __future__ import annotations

import pytest

from bus.topics.reordering import GroupPartition, read
from tests.acceptance.shopping import GROUPS, Shop
from tests.waiting import wait_until

GROUP, PARTITIONS = GROUPS["loose"]


def effects(shop: Shop) -> set[str]:
    places = [(GroupPartition("loose", GROUP, number), "none") for number in range(PARTITIONS)]
    return set(read(shop.bus, places).values())


@pytest.mark.timeout(300)
def test_from_no_ordering_to_one_by_key_and_back_nothing_is_lost_and_only_a_kill_repeats(shop: Shop) -> None:
    # Given two workers with the old code in the middle of it, with retries that wait for seconds
    shop.publish("loose", 20, postpone=5.0)
    shop.publish("loose", 400, first=20, sleep=0.02)
    first, second = (shop.worker(name, "-c", "2").wait_ready() for name in ("one", "two"))
    shop.wait_lines(100)
    # When one is killed, and workers with the new code come for both
    first.kill()
    in_hand = {line.n for line in shop.lines("start")} - {line.n for line in shop.lines("end")}
    shop.environment["SHOP_LOOSE_ORDERING"] = "key"
    third = shop.worker("three", "-c", "2").wait_ready()
    wait_until(lambda: third.says("until its ordering changes from 'none' to 'key'"), 60, "it to say so")
    shop.publish("loose", 300, first=420, fail=1)
    fourth = shop.worker("four", "-c", "2").wait_ready()
    assert second.stop() == 0
    # Then the new ordering comes into effect, and all is handled
    wait_until(lambda: effects(shop) == {"key"}, 60, "the new ordering")
    shop.wait_idle("loose", 60)
    repeated = shop.assert_each("loose", 720)
    assert repeated <= 4 * 50 + len(in_hand), "no more than two batches of the killed one"
    # What was published after it was declared is handled in order of its keys
    late = [line for line in sorted(shop.lines("end", "loose"), key=lambda line: line.at) if line.n >= 420]
    for key in {line.key for line in late}:
        numbers = [line.n for line in late if line.key == key]
        assert numbers == sorted(numbers)
    before = len(shop.lines("end", "loose"))

    # And back again, with clean stops alone: nothing is repeated
    shop.publish("loose", 200, first=720, fail=1, sleep=0.01)
    shop.environment["SHOP_LOOSE_ORDERING"] = "none"
    fifth = shop.worker("five", "-c", "2").wait_ready()
    assert third.stop() == 0
    assert fourth.stop() == 0
    wait_until(lambda: effects(shop) == {"none"}, 60, "the old ordering again")
    shop.publish("loose", 100, first=920)
    shop.wait_idle("loose", 60)
    shop.assert_each("loose", 1020)
    assert len(shop.lines("end", "loose")) == before + 300
    assert fifth.runs
