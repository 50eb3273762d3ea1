"""Handlers that run at once: bounded, across keys only, and none is left in the middle."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import StaleLease
from bus.format import codec
from bus.values import Message
from tests import loops
from workers.slices import chains
from workers.slices.chains import Chains
from workers.slices.dispatch import Failed


def message(number: int, key: str = "") -> Message:
    fields = codec.encode("t", number, key or None, max_bytes=1000)
    return Message("t", 0, f"1-{number}", fields, codec.decode)


def tie_of(each: Message) -> str:
    return each.key or ""


class Log:
    """A watch that remembers; it lets `room` messages begin, and holds back what is in `held`."""

    def __init__(self, room: int = 10_000, held: frozenset[int] = frozenset()) -> None:
        self.room = room
        self.held = held
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.failed: dict[int, Failed] = {}
        self.at_tick: Callable[[], None] = lambda: None

    def may_begin(self) -> bool:
        return len(self.begun) < self.room

    def begin(self, each: Message) -> bool:
        if each.value in self.held:
            return False
        self.begun.append(each.value)
        return True

    def end(self, each: Message, failed: Failed | None) -> None:
        self.ended.append(each.value)
        if failed is not None:
            self.failed[each.value] = failed

    def tick(self) -> None:
        self.at_tick()


keys = st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=60)


@given(keys, st.integers(1, 5), st.randoms(use_true_random=False))
def test_every_message_runs_once_in_the_order_of_its_key_and_never_two_of_one_key(
    names: list[str], at_most: int, random: object
) -> None:
    log, running, most = Log(), defaultdict(int), [0]

    async def handle(each: Message) -> Failed | None:
        if each.key:
            running[each.key] += 1
            assert running[each.key] == 1
        most[0] = max(most[0], len(log.begun) - len(log.ended))
        for _ in range(random.randrange(4)):  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        if each.key:
            running[each.key] -= 1
        return None

    before, chains.CONCURRENCY = chains.CONCURRENCY, at_most
    try:
        messages = [message(number, name) for number, name in enumerate(names)]
        assert loops.run(Chains(messages, tie_of).run(handle, log))
    finally:
        chains.CONCURRENCY = before
    assert sorted(log.ended) == list(range(len(names)))
    for key in "abc":
        mine = [number for number, name in enumerate(names) if name == key]
        assert [number for number in log.begun if number in mine] == mine
    assert most[0] <= at_most


def test_a_hundred_wait_at_once() -> None:
    log, gate = Log(), asyncio.Event()

    async def handle(_: Message) -> Failed | None:
        if len(log.begun) == chains.CONCURRENCY:
            gate.set()
        await gate.wait()
        return None

    assert loops.run(Chains([message(number) for number in range(250)], tie_of).run(handle, log))
    assert len(log.ended) == 250


def test_what_is_held_back_is_passed_over_and_its_chain_goes_on() -> None:
    log = Log(held=frozenset({1, 2}))

    async def handle(_: Message) -> Failed | None:
        return None

    messages = [message(number, "a") for number in range(5)]
    assert loops.run(Chains(messages, tie_of).run(handle, log))
    assert log.ended == [0, 3, 4]


def test_once_it_may_begin_no_more_what_runs_ends_and_the_rest_is_left() -> None:
    log = Log(room=3)

    async def handle(_: Message) -> Failed | None:
        await asyncio.sleep(0)
        return None

    assert not loops.run(Chains([message(number) for number in range(5)], tie_of).run(handle, log))
    assert sorted(log.ended) == [0, 1, 2]


def test_what_the_watch_raises_comes_after_the_handlers_that_run_have_ended() -> None:
    log, finished = Log(), []

    def lost() -> None:
        raise StaleLease("gone")

    log.at_tick = lost

    async def handle(each: Message) -> Failed | None:
        if each.value:
            await asyncio.sleep(0.02)
            finished.append(each.value)
        return None

    with pytest.raises(StaleLease):
        loops.run(Chains([message(number) for number in range(5)], tie_of).run(handle, log))
    assert finished == [1, 2, 3, 4]
