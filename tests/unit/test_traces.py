"""What is kept of an exception, whatever its text."""

from __future__ import annotations

import logging

import pytest

from bus.consuming.subscriptions import Subscription
from bus.errors import Reject
from bus.format import codec
from bus.values import Message
from workers.slices import traces
from workers.slices.dispatch import Dispatcher


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


HUGE = "x" * 10_000_000


def huge_cause() -> Exception:
    try:
        try:
            raise ValueError(HUGE)
        except ValueError as error:
            raise KeyError("small") from error
    except KeyError as error:
        return error


ERRORS = [ValueError(HUGE), ValueError("é" * 5_000), ValueError("\ud800" * 5_000), Mute(), Reject(Mute()),
          Reject(HUGE), huge_cause(), ValueError("𝄞" * 3_999)]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=range(len(ERRORS)))
def test_what_is_kept_and_logged_is_small_and_can_be_written(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(message: Message) -> None:
        raise error

    subscription = Subscription(topic="orders", group="stock", handler=handler)
    message = Message("orders", 0, "1-0", [b"v", b"1"], codec.decode, 1)
    failed = Dispatcher(subscription).handle(message)
    assert failed is not None
    for text in (failed.reason, failed.error):
        assert text
        assert len(text.encode()) <= traces.MAX_BYTES
    logging.getLogger("test").error("%s", failed.reason, exc_info=traces.exc_info(error))
    assert len(caplog.text) < 5 * traces.MAX_BYTES


def test_a_text_that_is_cut_shows_where_it_began_and_where_it_ended() -> None:
    cut = traces.clipped("begin" + HUGE + "end")
    assert cut.startswith("beginx")
    assert cut.endswith("xend")
    assert "10,000,008 characters" in cut
    assert traces.clipped("short") == "short"


def test_an_ordinary_error_is_logged_as_it_is() -> None:
    error = ValueError("no")
    assert traces.exc_info(error) == (ValueError, error, None)
