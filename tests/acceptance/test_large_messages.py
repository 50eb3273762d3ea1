"""Large messages after small ones: the memory of a pool process stays bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.operating import groups
from tests.acceptance.shopping import Shop

pytestmark = pytest.mark.timeout(240)

MIB = 1 << 20
COUNT = 300
#: What a pool process may grow by: a batch of 4 MiB or a reply of 16 MiB that is given up, each as bytes and
#: as values, and what Python keeps for itself. All at once would be 300 and more.
GROWTH = 96 * MIB


def peak(pid: int) -> int:
    """The most memory that a process has ever had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize("how", ["new", "left over", "retried"])
def test_three_hundred_messages_of_a_mebibyte_after_small_ones_do_not_fill_the_memory(
    shop: Shop, how: str
) -> None:
    # Given a worker that fetches small messages in full batches, all of one partition
    worker = shop.worker("one", "-c", "1").wait_ready()
    for first in range(0, 6000, 2000):
        shop.bus.publish_many(
            "keyed", ({"n": number} for number in range(first, first + 2000)), key=lambda _: "k"
        )
        shop.wait_lines(first + 2000, topic="keyed")
    [child] = worker.children()
    before = peak(child)
    # When many large ones wait for it: new, or given to a worker that died, or to be tried again at once
    groups.pause(shop.bus, "keyed", "bykey")
    if how == "left over":
        assert worker.stop() == 0
    value = {"text": "x" * (MIB - 200), "fail": 1 if how == "retried" else 0}
    values = ({"n": number, **value} for number in range(6000, 6000 + COUNT))
    shop.bus.publish_many("keyed", values, key=lambda _: "k" if how != "retried" else None)
    if how == "left over":
        keys = [shop.bus.keys.partition("keyed", number) for number in range(8)]
        for each in keys:
            shop.bus.client.call(
                "XREADGROUP", "GROUP", "bykey", "0", "COUNT", COUNT, "STREAMS", each.stream, ">"
            )
        worker = shop.worker("two", "-c", "1").wait_ready()
        [child] = worker.children()
        before = peak(child)
    groups.resume(shop.bus, "keyed", "bykey")
    shop.wait_lines(6000 + COUNT, topic="keyed", timeout=120)
    shop.wait_idle("keyed")
    # Then the process has not grown by much, and each was handled once
    assert worker.children() == [child]
    grown = peak(child) - before
    print(f"{how}: {before / MIB:.0f} MiB before, {grown / MIB:.0f} MiB more")
    assert grown < GROWTH
    shop.assert_each_once("keyed", 6000 + COUNT)
