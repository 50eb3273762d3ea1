"""Dead letters with real workers: retried after the bug is mended, they are handled once, by one group."""

from __future__ import annotations

from collections import Counter

import pytest

from bus import observe
from bus.errors import UnknownGroup
from bus.operating import deadletters
from tests import nursery
from tests.acceptance.shopping import Shop
from tests.waiting import wait_until

TOPICS = ("invoices", "hints")


@pytest.fixture
def mended(shop: Shop) -> Shop:
    """The shop with the app of this test, and its topics."""
    shop.environment["DJANGO_SETTINGS_MODULE"] = "tests.acceptance.mended.settings"
    for topic in TOPICS:
        shop.bus.topic(topic, partitions=2)
    shop.bus.registry.project(shop.bus.declared.specs().values())
    shop.migrate()  # the audit needs its table
    return shop


def bus_command(shop: Shop, *arguments: str) -> str:
    return nursery.run(["manage.py", "bus", *arguments], shop.environment)


def ended(shop: Shop, topic: str, group: str) -> list[int]:
    """The numbers that this group has handled to the end, in that order."""
    return [line.n for line in shop.lines("end", topic) if line.key == group]


def settled(shop: Shop, topic: str) -> bool:
    try:
        groups = [observe.group(shop.bus, topic, name)[0] for name in ("broken", "sound")]
    except UnknownGroup:
        return False  # no worker has declared it yet
    return all(one.lag is not None and one.lag.count == 0 and one.pending == 0 for one in groups)


def wait_settled(shop: Shop) -> None:
    wait_until(lambda: all(settled(shop, topic) for topic in TOPICS), 60, "everything to be settled", 0.05)


@pytest.mark.both_servers
@pytest.mark.parametrize("trimmed", [False, True], ids=["kept", "trimmed"])
def test_after_the_bug_is_mended_retried_letters_are_handled_once_and_by_their_group_alone(
    mended: Shop, trimmed: bool
) -> None:
    # Given messages that the handlers of one group give up on
    for topic in TOPICS:
        mended.publish(topic, 30)
        mended.publish(topic, 10, first=30, bug=True)
    worker = mended.worker().wait_ready()
    wait_settled(mended)
    for topic in TOPICS:
        assert sorted(ended(mended, topic, "broken")) == list(range(30))
        assert sorted(ended(mended, topic, "sound")) == list(range(40))
        assert deadletters.count(mended.bus, topic, "broken").kept == 10
    assert worker.stop() == 0
    if trimmed:
        for topic in TOPICS:
            for number in range(2):
                stream = mended.bus.keys.partition(topic, number).stream
                mended.bus.client.call("XTRIM", stream, "MAXLEN", 0)

    # When a new release runs, idle by now, and an operator retries them all
    mended.environment["MENDED"] = "1"
    mended.worker("two").wait_ready()
    wait_until(lambda: all(each.owner for each in observe.group(mended.bus, "invoices", "broken")[1]), 30)
    for topic in TOPICS:
        assert "Retry 10 dead letters" in bus_command(mended, "dead", "retry", topic, "broken", "--all")
        assert "10" in bus_command(mended, "dead", "retry", topic, "broken", "--all", "--apply")

    # Then each is handled once, as new, by that group; the other sees none of them again
    wait_until(
        lambda: all(len(ended(mended, topic, "broken")) >= 40 for topic in TOPICS), 30, "the retried ones"
    )
    wait_settled(mended)
    for topic in TOPICS:
        assert Counter(ended(mended, topic, "broken")) == Counter(range(40))
        assert Counter(ended(mended, topic, "sound")) == Counter(range(40))
        retried = [line for line in mended.lines("end", topic) if line.key == "broken" and line.n >= 30]
        assert {line.attempt for line in retried} == {1}
        assert deadletters.count(mended.bus, topic, "broken").kept == 0
        for number in range(2):
            keys = mended.bus.keys.partition(topic, number)
            assert mended.bus.client.call("EXISTS", keys.retry("broken"), keys.held("broken")) == 0


def test_a_retry_does_not_make_a_running_handler_run_twice(mended: Shop) -> None:
    # Given a dead letter in each partition, and handlers that are in the middle of a long message there
    for topic in TOPICS:
        mended.publish(topic, 8, bug=True)
    worker = mended.worker().wait_ready()
    wait_settled(mended)
    assert worker.stop() == 0
    mended.environment["MENDED"] = "1"
    mended.worker("two", "-c", "4").wait_ready()
    for topic in TOPICS:
        mended.publish(topic, 8, first=100, sleep=1.0)
    wait_until(lambda: any(line.n >= 100 for line in mended.lines("start", "invoices")), 30)
    wait_until(lambda: any(line.n >= 100 for line in mended.lines("start", "hints")), 30)

    for topic in TOPICS:
        bus_command(mended, "dead", "retry", topic, "broken", "--all", "--apply")
    wait_until(lambda: all(len(ended(mended, topic, "broken")) >= 16 for topic in TOPICS), 60, "all of them")
    wait_settled(mended)

    for topic in TOPICS:
        assert Counter(ended(mended, topic, "broken")) == Counter([*range(8), *range(100, 108)])
        starts = Counter(line.n for line in mended.lines("start", topic) if line.n >= 100)
        assert starts == Counter(range(100, 108))
