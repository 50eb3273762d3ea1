"""What is no ordinary failure: exits and panics out of handlers, and deaths beside messages that have
failed."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.acceptance.shop.consumers import ERRORS
from tests.acceptance.shopping import Shop
from tests.waiting import wait_until

POOLS = {"prefork": ("-c", "2"), "threads": ("-c", "2", "--pool", "threads")}
ATTEMPTS = 3


def starts(shop: Shop, topic: str) -> Counter[int]:
    return Counter(line.n for line in shop.lines("start", topic))


@pytest.mark.timeout(200)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("topic", ["keyed", "awaited", "batches"])
def test_whatever_comes_out_of_a_handler_is_an_attempt_and_then_a_dead_letter(
    shop: Shop, topic: str, pool: str
) -> None:
    # Given messages whose handler raises what is no Exception, at each attempt, among others
    kinds = list(ERRORS)
    for number, kind in enumerate(kinds):
        shop.publish(topic, 1, first=number, raises=kind, fail=99)
    shop.publish(topic, 20, first=100, keys=20)
    worker = shop.worker("one", *POOLS[pool]).wait_ready()

    # When they are handled
    wait_until(lambda: len(shop.dead_letters(topic)) == len(kinds), 90, "all of them to be dead letters")
    shop.wait_idle(topic)

    # Then each had its attempts and no more, and its traceback is there
    for letter in shop.dead_letters(topic):
        assert letter["attempts"] == b"%d" % ATTEMPTS
    for kind in kinds:
        assert any(kind.encode() in letter["error"] for letter in shop.dead_letters(topic)), kind
    assert all(b"Traceback" in letter["error"] for letter in shop.dead_letters(topic))
    if topic != "batches":  # there a message also runs in the calls that its neighbours have broken
        assert [starts(shop, topic)[number] for number in range(len(kinds))] == [ATTEMPTS] * len(kinds)

    # And the worker goes on, and stops as ever
    shop.publish(topic, 20, first=200, keys=20)
    shop.wait_idle(topic)
    assert {line.n for line in shop.lines("end", topic)} == {*range(100, 120), *range(200, 220)}
    assert worker.stop() == 0


@pytest.mark.timeout(200)
@pytest.mark.parametrize("topic", ["keyed", "awaited", "batches"])
def test_a_message_that_was_refused_is_not_tried_again_because_its_process_dies(
    shop: Shop, topic: str
) -> None:
    # Given, in one batch, messages that can never succeed, that fail, and that kill their process
    for number in range(12):
        what = [{"reject": "never"}, {"fail": 99}, {"die": 2}][number % 3]
        shop.publish(topic, 1, first=number, keys=1 << 20, **what)
    # When they are handled
    worker = shop.worker("one", "-c", "1").wait_ready()
    wait_until(lambda: len(shop.dead_letters(topic)) == 8, 120, "all of them to be dead letters")
    shop.wait_idle(topic)
    # Then none has had more attempts than it may have, and what was rejected had one
    attempts = {bytes(each["v"]): int(each["attempts"]) for each in shop.dead_letters(topic)}
    assert sorted(attempts.values()) == [1] * 4 + [ATTEMPTS] * 4
    if topic == "keyed":
        runs = starts(shop, topic)
        assert [runs[number] for number in range(12)] == [1, ATTEMPTS, ATTEMPTS] * 4
    assert {line.n for line in shop.lines("end", topic)} == {2, 5, 8, 11}
    assert worker.stop() == 0
