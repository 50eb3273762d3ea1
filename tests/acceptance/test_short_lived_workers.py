"""Many workers come and go, some of them killed with messages in hand: nothing of them piles up.

SHORT_LIVED_WORKERS=200 makes it the long proof; `-s` shows what happened.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from bus.streams.commands import fields_of, scan, text
from tests.acceptance.shopping import GROUPS, Line, Shop, Worker, pid_of
from tests.waiting import wait_until

WORKERS = int(os.environ.get("SHORT_LIVED_WORKERS", "5"))
#: So many live at once; the newest of them is still starting.
OVERLAP = 3
#: One slot: the other process is kept for ordinary tasks.
OPTIONS = ("-c", "2")
#: Messages that a worker finds when it comes, and those that do not end until their worker was killed.
ORDINARY, HELD = 10, 8

#: A generous deadline, in seconds: nothing here depends on how fast the machine is.
SOON = 120

pytestmark = pytest.mark.timeout(400 + 20 * WORKERS)


class Crowd:
    """Workers that come, and go in one of two ways."""

    def __init__(self, shop: Shop, directory: Path) -> None:
        self.shop = shop
        self._directory = directory
        self._workers: list[Worker] = []
        self._stopping: list[Worker] = []
        self.published = {"keyed": 0, "loose": 0}
        self.killed: list[Line] = []
        """A message that each killed worker had in hand."""
        self.stopped = 0

    def come(self) -> None:
        """A worker more. The one before it, which was starting meanwhile, is ready now."""
        if self._workers:
            self._workers[-1].wait_ready()
        number = len(self._workers) + len(self.killed) + self.stopped
        self._workers.append(self.shop.worker(f"short-{number}", *OPTIONS))

    def __len__(self) -> int:
        return len(self._workers)

    def publish(self, topic: str, count: int, **what: str) -> range:
        first = self.published[topic]
        self.shop.publish(topic, count, first=first, **what)
        self.published[topic] += count
        return range(first, first + count)

    def stop_oldest(self) -> None:
        """SIGTERM, while it works; that it ends well is looked at later."""
        oldest = self._workers.pop(0).wait_ready()
        oldest.signal(signal.SIGTERM)
        self._stopping.append(oldest)
        self.stopped += 1

    def kill_one_at_work(self, topic: str) -> None:
        """SIGKILL for whoever has one of these messages in hand first."""
        end = self._directory / f"end-{len(self.killed)}"
        held = self.publish(topic, HELD, until=str(end))
        victim, line = wait_until(lambda: self._who_has(topic, held), SOON, "a message to be in hand", 0.1)
        victim.kill()
        end.touch()
        for workers in (self._workers, self._stopping):
            if victim in workers:
                workers.remove(victim)
        self.killed.append(line)

    def _who_has(self, topic: str, held: range) -> tuple[Worker, Line] | None:
        lines = [line for line in self.shop.lines("start", topic) if line.n in held]
        owners = {pid: worker for worker in self._workers + self._stopping if worker.runs
                  for pid in worker.children()}  # fmt: skip
        return next(((owners[line.pid], line) for line in lines if line.pid in owners), None)

    def see_off(self) -> None:
        """Those that were told to stop have done so, and well."""
        for worker in self._stopping:
            assert worker.wait(SOON) == 0
        self._stopping.clear()


def names_left(shop: Shop) -> set[str]:
    """Consumer names in all streams."""
    names = set()
    for topic, (group, partitions) in GROUPS.items():
        for number in range(partitions):
            stream = shop.bus.keys.partition(topic, number).stream
            consumers = shop.bus.client.call("XINFO", "CONSUMERS", stream, group)
            names |= {text(fields_of(raw)["name"]) for raw in consumers}
    return names


def leases_left(shop: Shop) -> dict[str, str]:
    """Key of each lease → its owner, or what stands in its place."""
    keys = [text(key) for key in scan(shop.bus.client, f"{shop.bus.settings.prefix}:*:lease:*")]
    values = shop.bus.client.call("MGET", *keys)
    return {key: text(value or b"").rpartition(":")[0] for key, value in zip(keys, values, strict=True)}


def leases_of(shop: Shop, name: str) -> dict[str, str]:
    """What there should be where one worker with one slot lives."""
    keys = []
    for topic, (group, partitions) in GROUPS.items():
        for number in range(partitions):
            lanes = ("0", f"{name}.0") if topic == "loose" else ("0",)
            keys += [shop.bus.keys.partition(topic, number).lease(group, lane) for lane in lanes]
    return dict.fromkeys(keys, name)


def test_names_and_lanes_do_not_pile_up_and_nothing_is_lost_after_many_short_lived_workers(
    shop: Shop, tmp_path: Path
) -> None:
    # Given many workers, each of which lives for a moment beside others; every second is killed, and has
    # messages of the ordered or of the unordered topic in hand
    began = time.monotonic()
    crowd = Crowd(shop, tmp_path)
    for number in range(WORKERS):
        crowd.come()
        for topic in crowd.published:
            crowd.publish(topic, ORDINARY)
        if len(crowd) < OVERLAP:
            continue
        crowd.see_off()
        if number % 2:
            crowd.stop_oldest()
        else:
            crowd.kill_one_at_work("keyed" if number % 4 else "loose")
    while len(crowd):
        crowd.stop_oldest()
    crowd.see_off()
    came = time.monotonic() - began

    # When one worker lives
    last = shop.worker("last", *OPTIONS).wait_ready()
    for topic in crowd.published:
        shop.wait_idle(topic, SOON)

    # Then its record, its names and its leases are the only ones
    def only_it_is_left() -> bool:
        table = list(fields_of(shop.bus.client.call("HGETALL", shop.bus.keys.workers)))
        return (
            [pid_of(name) for name in table] == [last.pid]
            and names_left(shop) <= {"0", f"{table[0]}.0"}
            and leases_left(shop) == leases_of(shop, table[0])
        )

    wait_until(only_it_is_left, SOON, "everything else to be gone", 0.2)

    # And every message was handled, the ordered ones in their order, and nobody was blamed for anything
    repeated = {topic: shop.assert_each(topic, count) for topic, count in crowd.published.items()}
    shop.assert_order("keyed", lambda line: line.key)
    assert [shop.dead_letters(topic) for topic in GROUPS] == [[]] * len(GROUPS)
    ended = {(line.topic, line.n, line.pid) for line in shop.lines()}
    assert not [line for line in crowd.killed if (line.topic, line.n, line.pid) in ended]
    print(
        f"\n{WORKERS} workers in {came:.0f} s: {len(crowd.killed)} killed with messages in hand, "
        f"{crowd.stopped} stopped; published {crowd.published}, repeated {repeated}; left: 1 record, "
        f"{len(leases_left(shop))} leases, {len(names_left(shop))} consumer names, no dead letters"
    )
