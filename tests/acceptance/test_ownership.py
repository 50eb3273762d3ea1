"""Real workers that serve different groups, or run different versions of the code: everything is consumed."""

from __future__ import annotations

from collections import Counter

import pytest

from bus.values import TopicSpec
from tests.acceptance.shopping import Shop, Worker
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(180)


class Fleet:
    """Workers of one project, each with the code of its day."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.sent: Counter[str] = Counter()
        shop.environment["DJANGO_SETTINGS_MODULE"] = "tests.acceptance.fleet.settings"

    def start(self, name: str, code: str, *options: str) -> Worker:
        self.shop.environment["FLEET_CODE"] = code
        return self.shop.worker(name, "-c", "2", *options).wait_ready()

    def publish(self, *topics: str) -> None:
        """Ten messages to each."""
        for topic in topics:
            self.shop.bus.publish_many(topic, range(self.sent[topic], self.sent[topic] + 10))
            self.sent[topic] += 10

    def wait_consumed(self, *places: str) -> None:
        """Until each of these groups has handled all that was sent to its topic, exactly once."""

        def left() -> dict[str, int]:
            lines = Counter(line.rpartition(" ")[0] for line in self.shop.ledger.read_text().splitlines())
            handled = {place: lines[place.replace("/", " ")] for place in places}
            return {place: self.sent[place.split("/")[0]] - count for place, count in handled.items()}

        wait_until(lambda: not any(left().values()), 45, f"nothing to be left of {left()}", 0.1)
        lines = Counter(self.shop.ledger.read_text().splitlines())
        assert not {line: count for line, count in lines.items() if count > 1}


@pytest.fixture
def fleet(shop: Shop) -> Fleet:
    for topic in ("t0", "t1", "t2", "t3"):
        shop.bus.registry.project([TopicSpec(name=topic, partitions=1)])
    return Fleet(shop)


def test_a_worker_that_serves_one_group_beside_one_that_serves_all_leaves_nothing_without_an_owner(
    fleet: Fleet,
) -> None:
    # Given a worker that serves all, and one that serves the second group alone
    everything = fleet.start("all", "t0/g0,t1/g1")
    fleet.publish("t0", "t1")
    fleet.wait_consumed("t0/g0", "t1/g1")
    one = fleet.start("one", "t0/g0,t1/g1", "--groups", "g1")
    # Then all that is published is consumed, now and once lanes have moved
    for _ in range(3):
        fleet.publish("t0", "t1")
        fleet.wait_consumed("t0/g0", "t1/g1")
    # And so it is when either is gone
    everything.kill()
    fleet.publish("t1")
    fleet.wait_consumed("t1/g1")
    fleet.start("again", "t0/g0,t1/g1")
    fleet.publish("t0", "t1")
    fleet.wait_consumed("t0/g0", "t1/g1")
    assert one.stop() == 0
    fleet.publish("t0", "t1")
    fleet.wait_consumed("t0/g0", "t1/g1")


def test_a_rolling_deploy_that_adds_removes_and_renames_handlers_consumes_everything(fleet: Fleet) -> None:
    # Given two workers with the old code
    before, after = "t0/g0,t1/old,t2/name", "t0/g0,t2/renamed,t3/new"
    first, second = fleet.start("first", before), fleet.start("second", before)
    fleet.publish("t0", "t1", "t2")
    fleet.wait_consumed("t0/g0", "t1/old", "t2/name")
    # When they are replaced one after the other
    assert first.stop() == 0
    fleet.start("third", after)
    # Then while both codes run everything that either knows is consumed, by the new groups from the beginning
    for _ in range(2):
        fleet.publish("t0", "t1", "t2", "t3")
        fleet.wait_consumed("t0/g0", "t1/old", "t2/name", "t2/renamed", "t3/new")
    assert second.stop() == 0
    fleet.start("fourth", after)
    fleet.publish("t0", "t2", "t3")
    fleet.wait_consumed("t0/g0", "t2/renamed", "t3/new")
