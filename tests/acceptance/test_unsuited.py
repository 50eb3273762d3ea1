"""What slices cannot run in is refused when a worker starts: with a clear error, and nothing left running."""

from __future__ import annotations

import pytest

from tests.acceptance.shopping import Shop


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("broker", "options", "why"),
    [
        ("memory://", (), "whose transport has an event loop (Redis, AMQP, SQS)"),
        ("memory://", ("--pool", "threads"), "whose transport has an event loop (Redis, AMQP, SQS)"),
        ("filesystem://", (), "whose transport has an event loop (Redis, AMQP, SQS)"),
        (None, ("--pool", "solo"), "The bus consumes in the prefork and threads pools, not in"),
        (None, ("--pool", "gevent"), "The bus consumes in the prefork and threads pools, not in"),
        (None, ("--pool", "eventlet"), "The bus consumes in the prefork and threads pools, not in"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else str(part)[:12],
)
def test_a_worker_that_cannot_consume_says_so_and_ends(
    shop: Shop, broker: str | None, options: tuple[str, ...], why: str
) -> None:
    if broker is not None:
        shop.environment["CELERY_BROKER_URL"] = broker
    worker = shop.worker("one", "-c", "2", *options)
    assert worker.wait(60) != 0
    assert worker.says(why)
    assert not worker.says("Exception in thread")
    assert not worker.says(" ready.")
    # And it has taken nothing
    assert shop.owners("keyed") in ([None], [None] * 8)
