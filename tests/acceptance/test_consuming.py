"""Real `celery -A workers worker` processes consume: each kind of group, outcomes, sharing, stopping."""

from __future__ import annotations

import signal

import pytest

from bus.streams.commands import fields_of
from tests import nursery
from tests.acceptance.shopping import GROUPS, Shop
from tests.waiting import wait_until


def dead_letters(shop: Shop, topic: str) -> list[dict[str, bytes]]:
    group, partitions = GROUPS[topic]
    found = []
    for number in range(partitions):
        key = shop.bus.keys.partition(topic, number).dead(group)
        found += [fields_of(entry[1]) for entry in shop.bus.client.call("XRANGE", key, "-", "+")]
    return found


@pytest.mark.both_servers
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_every_message_is_handled_once_and_in_order_in_every_kind_of_group(shop: Shop, pool: str) -> None:
    for topic in GROUPS:
        shop.publish(topic, 400)

    shop.worker("one", "-c", "2", "-P", pool).wait_ready()

    for topic in GROUPS:
        shop.wait_idle(topic)
        shop.assert_each_once(topic, 400)
    shop.assert_order("keyed", by=lambda line: line.key)
    shop.assert_order("batches", by=lambda line: line.key)
    shop.assert_order("strict", by=lambda line: line.partition)


def test_new_messages_wake_an_idle_worker(shop: Shop) -> None:
    shop.worker().wait_ready()
    shop.wait_owned("keyed")
    for round_ in range(5):
        shop.publish("keyed", 3, first=3 * round_)
        shop.publish("loose", 3, first=3 * round_)
        shop.wait_lines(3 * (round_ + 1), topic="keyed", timeout=5)
        shop.wait_lines(3 * (round_ + 1), topic="loose", timeout=5)


@pytest.mark.both_servers
def test_failures_are_retried_in_place_and_hold_back_only_their_own_key(shop: Shop) -> None:
    # Given one message of key k3 that fails twice, in the middle of many
    shop.publish("keyed", 43)
    shop.publish("keyed", 1, first=43, fail=2)
    shop.publish("keyed", 156, first=44)

    shop.worker().wait_ready()
    shop.wait_idle("keyed")

    # Then everything is done in order per key, and nothing is left of the failure
    shop.assert_each_once("keyed", 200)
    shop.assert_order("keyed", by=lambda line: line.key)
    assert [line.attempt for line in shop.lines("start", "keyed") if line.n == 43] == [1, 2, 3]
    group = shop.group("keyed")
    assert (group.retrying, group.held, group.dead) == (0, 0, 0)
    for number in range(8):
        keys = shop.bus.keys.partition("keyed", number)
        assert shop.bus.client.call("EXISTS", keys.retry("bykey"), keys.held("bykey")) == 0
        # `look` is upkeep's note of how far the group was, and says nothing of failures.
        assert set(shop.bus.client.call("HKEYS", keys.state("bykey"))) <= {b"era", b"ordering", b"look"}


def test_a_failing_message_holds_back_its_whole_partition_where_that_is_the_ordering(shop: Shop) -> None:
    shop.publish("strict", 30)
    shop.publish("strict", 1, first=30, fail=2)
    shop.publish("strict", 69, first=31)

    shop.worker().wait_ready()
    shop.wait_idle("strict")

    shop.assert_each_once("strict", 100)
    shop.assert_order("strict", by=lambda line: line.partition)


@pytest.mark.parametrize("topic", ["keyed", "strict", "loose", "batches"])
def test_what_cannot_succeed_becomes_a_dead_letter_with_its_reason_and_the_rest_goes_on(
    shop: Shop, topic: str
) -> None:
    # Given a rejected message, one that always fails, and an entry that is no message of ours
    shop.publish(topic, 10)
    shop.publish(topic, 1, first=10, reject="no such product")
    shop.publish(topic, 1, first=11, fail=99)
    stream = shop.bus.keys.partition(topic, 0).stream
    shop.bus.client.call("XADD", stream, "*", "v", b"{not json", "k", "k1")
    shop.publish(topic, 20, first=12)

    shop.worker().wait_ready()
    shop.wait_idle(topic)

    handled = {line.n for line in shop.lines("end", topic)}
    assert handled == set(range(32)) - {10, 11}
    letters = dead_letters(shop, topic)
    reasons = sorted(letter["reason"].decode() for letter in letters)
    assert len(letters) == 3
    assert any(reason == "no such product" for reason in reasons)
    assert any("told to fail" in reason for reason in reasons)
    assert any("undecodable" in reason for reason in reasons)
    raw = next(letter for letter in letters if letter["v"] == b"{not json")
    assert raw["k"] == b"k1"
    failed = next(letter for letter in letters if b"told to fail" in letter["reason"])
    assert failed["attempts"] == b"3"
    assert b"RuntimeError" in failed["error"]


def test_several_workers_share_the_lanes_of_one_group(shop: Shop) -> None:
    workers = [shop.worker(name, "-c", "2") for name in ("one", "two")]
    for worker in workers:
        worker.wait_ready()
    wait_until(lambda: len(set(shop.owners("keyed"))) == 2, 30, "both workers to own lanes")

    for topic in GROUPS:
        shop.publish(topic, 600)
    for topic in GROUPS:
        shop.wait_idle(topic)
        shop.assert_each_once(topic, 600)

    shop.assert_order("keyed", by=lambda line: line.key)
    shop.assert_order("strict", by=lambda line: line.partition)
    parents = {line.pid for line in shop.lines("end", "keyed")}
    assert len(parents & set(workers[0].children())) > 0
    assert len(parents & set(workers[1].children())) > 0


def test_ordinary_celery_tasks_run_in_the_same_worker(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.worker().wait_ready()
    shop.publish("keyed", 50, sleep=0.01)

    send = (
        "from workers import app; import tests.acceptance.shop.tasks as t; "
        "[app.send_task('tests.acceptance.shop.tasks.add', (i, i)) for i in range(5)]"
    )
    nursery.run(["-c", send], shop.environment)

    wait_until(lambda: shop.ledger.read_text().count("sum ") == 5, 30, "the ordinary tasks")
    shop.wait_idle("keyed")
    shop.assert_each_once("keyed", 50)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_sigterm_loses_nothing_and_delivers_nothing_twice(shop: Shop, pool: str) -> None:
    for topic in ("keyed", "strict", "loose"):
        shop.publish(topic, 300, sleep=0.005)
    worker = shop.worker("one", "-c", "2", "-P", pool).wait_ready()
    shop.wait_lines(60)

    assert worker.stop() == 0
    stopped_at = len(shop.lines())
    assert stopped_at < 900
    assert not any(owner and owner != "free" for owner in shop.owners("keyed"))

    shop.worker("two", "-c", "2", "-P", pool).wait_ready()
    for topic in ("keyed", "strict", "loose"):
        shop.wait_idle(topic)
        shop.assert_each_once(topic, 300)
    shop.assert_order("keyed", by=lambda line: line.key)
    shop.assert_order("strict", by=lambda line: line.partition)
    # Nothing was begun twice either
    starts = shop.lines("start")
    assert len(starts) == 900


def test_after_sigkill_everything_unsettled_is_delivered_again(shop: Shop) -> None:
    shop.publish("keyed", 400, sleep=0.005)
    shop.publish("loose", 200, sleep=0.005)
    worker = shop.worker("one", "-c", "2").wait_ready()
    shop.wait_lines(80)

    worker.kill()
    shop.worker("two", "-c", "2").wait_ready()

    shop.wait_idle("keyed")
    shop.wait_idle("loose")
    # At most about a batch (0.1 s) for each of the two processes is handled twice.
    assert shop.assert_each("keyed", 400) + shop.assert_each("loose", 200) <= 2 * 60
    shop.assert_order("keyed", by=lambda line: line.key)


def test_a_worker_on_another_host_takes_over_when_the_beat_stands_still(shop: Shop) -> None:
    # Given a worker whose death nobody can prove: it is not gone, its beat merely stands still
    first = shop.worker("one", "-c", "1").wait_ready()
    shop.wait_owned("keyed")
    second = shop.worker("two", "-c", "1").wait_ready()
    wait_until(lambda: len(set(shop.owners("keyed"))) == 2, 30, "both to own lanes")

    first.signal(signal.SIGSTOP)
    shop.publish("keyed", 100)

    shop.wait_lines(100, timeout=40)
    shop.assert_each_once("keyed", 100)
    assert {line.pid for line in shop.lines()} >= set(second.children())
    first.signal(signal.SIGCONT)


def test_a_pool_process_killed_by_a_message_repeats_none_of_its_neighbours(shop: Shop) -> None:
    # Given a message that kills its process twice, and one that always does
    shop.publish("keyed", 60)
    shop.publish("keyed", 1, first=60, die=2)
    shop.publish("keyed", 60, first=61)
    shop.publish("keyed", 1, first=121, die=99)
    shop.publish("keyed", 78, first=122)

    shop.worker().wait_ready()
    shop.wait_idle("keyed")

    handled = [line.n for line in shop.lines("end", "keyed")]
    assert sorted(handled) == [n for n in range(200) if n != 121]
    shop.assert_order("keyed", by=lambda line: line.key)
    [letter] = dead_letters(shop, "keyed")
    assert b"worker lost" in letter["reason"]
    assert letter["attempts"] == b"3"
