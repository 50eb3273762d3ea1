"""`async def` handlers in real workers: many at once, those of one key one after the other."""

from __future__ import annotations

import pytest

from tests.acceptance.shopping import Shop

TOPIC = "awaited"


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_handlers_of_different_keys_wait_together_and_those_of_one_key_in_turn(shop: Shop, pool: str) -> None:
    # Given handlers of which none goes on before five of them are in hand: one at a time would wait for ever
    shop.publish(TOPIC, 20, keys=20, together=5)
    shop.worker("one", "-c", "2", "--pool", pool).wait_ready()
    shop.wait_idle(TOPIC)
    # When more of few keys follow
    shop.publish(TOPIC, 500, keys=7, first=20, sleep=0.002, query=True)
    shop.wait_idle(TOPIC)
    # Then each was handled once, and each key in its order
    shop.assert_each_once(TOPIC, 520)
    shop.assert_order(TOPIC, lambda line: line.key)
    assert shop.dead_letters(TOPIC) == []


def test_a_failing_message_holds_back_its_key_alone(shop: Shop) -> None:
    shop.publish(TOPIC, 1, keys=1, fail=2)
    shop.publish(TOPIC, 100, keys=5, first=1)
    shop.publish(TOPIC, 1, keys=1, first=101, reject="never")
    shop.worker().wait_ready()
    shop.wait_idle(TOPIC)
    shop.assert_each_once(TOPIC, 101)
    shop.assert_order(TOPIC, lambda line: line.key)
    assert [letter["reason"] for letter in shop.dead_letters(TOPIC)] == [b"never"]


def test_of_handlers_that_die_together_only_the_one_at_fault_becomes_a_dead_letter(shop: Shop) -> None:
    # Given a message that kills its process, among others that are in hand at the same time
    shop.publish(TOPIC, 30, keys=30, sleep=0.05)
    shop.publish(TOPIC, 1, keys=1, first=30, die=99)
    shop.publish(TOPIC, 30, keys=30, first=31, sleep=0.05)
    shop.worker().wait_ready()
    # Then it ends as a dead letter, and every other one is handled
    shop.wait_idle(TOPIC, 120)
    assert sorted({line.n for line in shop.lines("end", TOPIC)}) == [n for n in range(61) if n != 30]
    letters = shop.dead_letters(TOPIC)
    assert len(letters) == 1
    assert b"worker lost" in letters[0]["reason"]


def test_a_clean_stop_lets_the_handlers_in_hand_end_and_doubles_nothing(shop: Shop) -> None:
    shop.publish(TOPIC, 300, keys=300, sleep=0.2)
    one = shop.worker("one").wait_ready()
    shop.wait_lines(50, "start", TOPIC)
    assert one.stop() == 0
    shop.worker("two").wait_ready()
    shop.wait_idle(TOPIC)
    shop.assert_each_once(TOPIC, 300)
