"""Nothing that a handler says or does stops a partition, has more attempts than it may, or is done twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.acceptance.shop.oddities import FORKS, ODD
from tests.acceptance.shopping import Shop, Worker
from tests.waiting import wait_until

POOLS = {"prefork": ("-c", "2"), "threads": ("-c", "2", "--pool", "threads")}
ATTEMPTS = 3
#: Keys k0 to k999 in turn: message n + KEYS is behind message n.
KEYS = 1000
NEIGHBOURS = range(500, 540)


def ends(shop: Shop, topic: str) -> Counter[int]:
    return Counter(line.n for line in shop.lines("end", topic))


def publish_among_others(shop: Shop, topic: str, kinds: list[str]) -> list[int]:
    """Odd messages, numbered from 0, with others around and behind them; the numbers of all others."""
    for number, kind in enumerate(kinds):
        shop.publish(topic, 1, first=number, keys=KEYS, odd=kind)
        shop.publish(topic, 1, first=KEYS + number, keys=KEYS)
    shop.publish(topic, len(NEIGHBOURS), first=NEIGHBOURS.start, keys=KEYS)
    return [*range(KEYS, KEYS + len(kinds)), *NEIGHBOURS]


@pytest.mark.timeout(200)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("topic", ["keyed", "awaited", "batches"])
def test_what_no_outcome_can_be_made_of_has_its_attempts_and_is_a_dead_letter(
    shop: Shop, topic: str, pool: str
) -> None:
    # Given messages of which an outcome is hard to make, or to tell of, among others
    kinds = list(ODD)
    others = publish_among_others(shop, topic, kinds)
    worker = shop.worker("one", *POOLS[pool]).wait_ready()

    # When they are handled
    wait_until(lambda: len(shop.dead_letters(topic)) == len(kinds), 90, "all of them to be dead letters")
    shop.wait_idle(topic)

    # Then each had its attempts and no more, and all others were done, once
    assert [letter["attempts"] for letter in shop.dead_letters(topic)] == [b"%d" % ATTEMPTS] * len(kinds)
    if topic != "batches":  # there a message also runs in the calls that its neighbours have broken
        starts = Counter(line.n for line in shop.lines("start", topic))
        assert [starts[number] for number in range(len(kinds))] == [ATTEMPTS] * len(kinds)
        assert [starts[number] for number in others] == [1] * len(others)
    assert ends(shop, topic) == dict.fromkeys(others, 1)
    # And no slice was broken off, and the worker stops as ever
    assert not worker.says("broken off by an error")
    assert worker.stop() == 0


def processes(worker: Worker) -> set[int]:
    """All processes of the worker, which is the leader of its session."""
    found = set()
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                session = int((path / "stat").read_text().rpartition(")")[2].split()[3])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if session == worker.pid:
                found.add(int(path.name))
    return found


@pytest.mark.timeout(200)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("topic", ["keyed", "awaited", "batches"])
def test_a_process_that_a_handler_forks_off_ends_where_it_leaves_the_handler(
    shop: Shop, topic: str, pool: str
) -> None:
    # Given handlers whose child returns, exits, or raises, while they wait for it
    kinds = list(FORKS)
    worker = shop.worker("one", *POOLS[pool]).wait_ready()
    shop.wait_owned(topic)
    before = processes(worker)
    others = publish_among_others(shop, topic, kinds)
    # When they are handled
    shop.wait_idle(topic)
    # Then the children ended with the codes that they asked for, and all was done once, at the first attempt
    codes = [
        int(line.split()[1]) for line in shop.ledger.read_text().splitlines() if line.startswith("child ")
    ]
    assert sorted(codes) == sorted(code for _, code in FORKS.values())
    assert ends(shop, topic) == dict.fromkeys([*range(len(kinds)), *others], 1)
    assert {line.attempt for line in shop.lines("start", topic)} == {1}
    assert len(shop.lines("start", topic)) == len(kinds) + len(others)
    assert not shop.dead_letters(topic)
    # And the worker has the processes that it had, and goes on
    assert processes(worker) <= before
    shop.publish(topic, 20, first=700, keys=KEYS)
    shop.wait_idle(topic)
    assert {line.n for line in shop.lines("end", topic)} >= set(range(700, 720))
    assert worker.stop() == 0
