"""What failed is not kept: a traceback holds frames, and these the batch, until the collector runs."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.streams.embedded import EmbeddedServer
from bus.values import RetryPolicy
from tests.integration.inline import InlineWorker
from tests.waiting import wait_until

COUNT = 40


class Broken(Exception):
    """Can be watched by a weak reference, as its base cannot."""


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    logging.disable()  # pytest keeps all log records, and these what was raised
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


def handlers(fail: Callable[[Any], None]) -> dict[str, Subscription]:
    async def waiting(message: Any) -> None:
        fail(message)

    def several(batch: Any) -> None:
        for message in batch:
            fail(message)

    common: dict[str, Any] = {
        "topic": "t",
        "group": "g",
        "retry": RetryPolicy(attempts=2, delay=0.01, jitter=0),
    }
    return {
        "single": Subscription(handler=fail, **common),
        "async": Subscription(handler=waiting, **common),
        "batch": Subscription(handler=several, batch=10, **common),
    }


@pytest.mark.parametrize("kind", ["single", "async", "batch"])
def test_what_a_handler_raised_is_gone_when_it_is_recorded_without_the_garbage_collector(
    server: EmbeddedServer, prefix: str, kind: str, transactional_db: None, no_collector: None
) -> None:
    raised: list[weakref.ref[Broken]] = []

    def fail(message: Any) -> None:
        error = Broken(message.value)
        raised.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error  # this frame must not be the circle

    bus = Bus(server.url, prefix=prefix)
    bus.topic("t", partitions=2)
    bus.registry.project(bus.declared.specs().values())
    bus.publish_many("t", range(COUNT))
    # Given a handler that fails with every message, at both attempts
    with InlineWorker(bus, [handlers(fail)[kind]]):
        wait_until(lambda: len(raised) >= 2 * COUNT, 40, "all attempts")
    # Then of all those exceptions hardly any is left
    assert sum(ref() is not None for ref in raised) <= 2
    bus.close()
