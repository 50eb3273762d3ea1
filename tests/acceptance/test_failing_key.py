"""One key of fifty fails for long, under load: what it may hold up, and what it may cost."""

from __future__ import annotations

from collections import Counter
from math import ceil
from pathlib import Path

import pytest

from admin_ui import verdicts
from bus import observe
from bus.errors import UnknownGroup
from bus.partition import partition_of
from tests.acceptance.shopping import Shop
from tests.waiting import wait_until

TOPIC, GROUP, PARTITIONS = "readings", "meter", 4
KEYS, FAILING = 50, "k7"
ILL = partition_of(FAILING, PARTITIONS)
COUNT = 20_000
#: BUS["HELD_LIMIT"] in stubborn/settings.py, and the most messages that one turn fetches.
HELD_LIMIT, BATCH = 300, 500

#: A generous deadline, in seconds: nothing here depends on how fast the machine is.
SOON = 150

pytestmark = pytest.mark.timeout(540)


class Stubborn:
    """The shop with the app of this test."""

    def __init__(self, shop: Shop, healed: Path) -> None:
        self.shop = shop
        self._healed = healed
        shop.environment |= {
            "DJANGO_SETTINGS_MODULE": "tests.acceptance.stubborn.settings",
            "FAILING_KEY": FAILING,
            "HEALED": str(healed),
        }
        shop.bus.topic(TOPIC, partitions=PARTITIONS)
        shop.bus.registry.project(shop.bus.declared.specs().values())
        self._keys = shop.bus.keys.partition(TOPIC, ILL)

    def heal(self) -> None:
        self._healed.touch()

    def look(self) -> tuple[observe.GroupSnapshot, list[observe.GroupPartitionSnapshot]]:
        return observe.group(self.shop.bus, TOPIC, GROUP)

    def others_flow(self) -> bool:
        """Every partition but that of the failing key is settled."""
        try:
            parts = self.look()[1]
        except UnknownGroup:
            return False  # no worker has declared it yet
        return all(
            part.lag is not None and part.lag.count == 0 and part.pending == 0
            for part in parts
            if part.partition != ILL
        )

    def waiting(self) -> int:
        """Messages in the retry and the held zset of the failing key's partition."""
        keys = self._keys.retry(GROUP), self._keys.held(GROUP)
        return sum(int(self.shop.bus.client.call("ZCARD", key)) for key in keys)

    def traces(self) -> int:
        """Keys and fields left in Redis that only a failing message makes."""
        keys = self._keys.retry(GROUP), self._keys.held(GROUP)
        fields = self.shop.bus.client.call("HKEYS", self._keys.state(GROUP))
        return int(self.shop.bus.client.call("EXISTS", *keys)) + len(set(fields) - {b"era"})

    def stopped(self) -> bool:
        """The failing key's partition has reached the held limit, and all that was fetched is settled."""
        part = self.look()[1][ILL]
        return self.waiting() >= HELD_LIMIT and part.pending == self.waiting()

    def attempts(self) -> int:
        return len(self.shop.lines("fail"))


@pytest.fixture
def stubborn(shop: Shop, tmp_path: Path) -> Stubborn:
    return Stubborn(shop, tmp_path / "healed")


def keys_in(partition: int) -> set[str]:
    keys = (f"k{number}" for number in range(KEYS))
    return {key for key in keys if partition_of(key, PARTITIONS) == partition}


@pytest.mark.parametrize("burst", [1_000, COUNT], ids=["in bursts", "at once"])
def test_a_key_that_fails_for_long_holds_up_its_partition_at_the_held_limit_and_nothing_else(
    stubborn: Stubborn, burst: int
) -> None:
    # Given a worker, and one key of fifty whose first message fails again and again
    shop = stubborn.shop
    neighbours = keys_in(ILL) - {FAILING}
    # The keys come in turn, so one batch holds no more of the failing one than this.
    most = HELD_LIMIT + ceil(BATCH / (len(neighbours) + 1))
    shop.worker().wait_ready()

    # When burst after burst is published: the other partitions keep up, what waits stays bounded
    for first in range(0, COUNT, burst):
        shop.publish(TOPIC, burst, keys=KEYS, first=first)
        wait_until(stubborn.others_flow, SOON, "the other partitions to be settled", 0.1)
        assert stubborn.waiting() <= most
    wait_until(stubborn.stopped, SOON, "the held limit to be reached", 0.1)

    # Then the failing key is tried on, and yet nothing more is fetched in its partition
    before, tried = stubborn.look()[1][ILL], stubborn.attempts()
    wait_until(lambda: stubborn.attempts() >= tried + 30, SOON, "thirty attempts more", 0.2)
    group, parts = stubborn.look()
    assert parts[ILL].position == before.position
    assert parts[ILL].lag is not None
    assert parts[ILL].lag.count > 0
    assert HELD_LIMIT <= stubborn.waiting() <= most
    assert group.pending == parts[ILL].pending == stubborn.waiting()
    assert verdicts.verdict(group, group.workers) is verdicts.HELD_BACK

    # And only the head of the key ran; its neighbours got as far as the partition, all others to the end
    assert {line.n for line in shop.lines("fail")} == {int(FAILING[1:])}
    handled = Counter(line.key for line in shop.lines())
    assert FAILING not in handled
    assert all(HELD_LIMIT - 1 <= handled[key] < COUNT // KEYS for key in neighbours)
    others = {f"k{number}" for number in range(KEYS)} - keys_in(ILL)
    assert {handled[key] for key in others} == {COUNT // KEYS}

    # When the key heals
    stubborn.heal()

    # Then everything is handled, each once, every key in its order, and nothing is left behind
    wait_until(
        lambda: (group := stubborn.look()[0]).pending == 0 and group.lag == observe.Lag(0),
        SOON,
        "everything to be settled",
        0.1,
    )
    shop.assert_each_once(TOPIC, COUNT)
    shop.assert_order(TOPIC, lambda line: line.key)
    assert stubborn.traces() == 0
    group = stubborn.look()[0]
    assert group.dead == 0
    assert verdicts.verdict(group, group.workers) is verdicts.OK
