"""What is kept and logged of an exception, whatever it is made of."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import pytest

from bus.consuming.subscriptions import Subscription
from bus.errors import Reject
from bus.format import codec
from bus.safety import tracebacks
from bus.safety.complaints import Complaints, write
from bus.values import Message, RetryPolicy
from workers.slices import failures, traces
from workers.slices.dispatch import Dispatcher

LOGGER = logging.getLogger("jitney.test_traces")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Unnoted(Exception):
    @property
    def __notes__(self) -> Any:
        raise RuntimeError("no notes")


HUGE = "x" * 1_000_000


def huge_cause() -> Exception:
    try:
        try:
            raise ValueError(HUGE)
        except ValueError as error:
            raise KeyError("small") from error
    except KeyError as error:
        return error


def long_chain() -> Exception:
    error = ValueError("first" + "x" * 3_000)
    for number in range(100):
        later = ValueError(f"{number}" + "x" * 3_000)
        later.__context__, error = error, later
    return error


def noted(*notes: str) -> Exception:
    error = ValueError("no")
    for note in notes:
        error.add_note(note)
    return error


def nested(depth: int, width: int, text: str) -> Exception:
    """Return a group that shows one error width ** depth times."""
    error: Exception = ValueError(text)
    for _ in range(depth):
        error = ExceptionGroup("g", [error] * width)
    return error


def named(name: str) -> Exception:
    made: Exception = type(name, (Exception,), {})("no")
    return made


ERRORS = [ValueError(HUGE), ValueError("é" * 5_000), ValueError("\ud800" * 5_000), Mute(), Reject(Mute()),
          Reject(HUGE), huge_cause(), ValueError("𝄞" * 3_999), long_chain(), noted(HUGE),
          noted(*["n"] * 100_000),
          nested(1, 1, HUGE), nested(3, 2, HUGE), nested(9, 9, "x"), ExceptionGroup(HUGE, [ValueError("x")]),
          nested(1, 10_000, "x"), named("C" * 1_000_000), Unnoted(), SyntaxError("no", ("f", 1, 1, HUGE)),
          SyntaxError("no", ("f", 1, 1, 5)), ValueError("\u202e" * 3_000)]  # fmt: skip


def failed_with(error: BaseException) -> Any:
    def handler(message: Message) -> None:
        raise error

    subscription = Subscription(topic="orders", group="stock", handler=handler, retry=RetryPolicy(attempts=2))
    message = Message("orders", 0, "1-0", [b"v", b"1"], codec.decode, 1)
    return message, Dispatcher(subscription).handle(message), subscription


@pytest.mark.parametrize("error", ERRORS, ids=range(len(ERRORS)))
def test_what_is_kept_and_logged_is_small_and_can_be_written(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    message, failed, subscription = failed_with(error)
    assert failed is not None
    for text in (failed.reason, failed.error):
        assert text
        assert len(text.encode()) <= traces.MAX_BYTES
    failures.tell(message, failed, subscription)
    assert len(caplog.text) < 6 * traces.MAX_BYTES
    # And what a formatter of the project's own may make of the exception is not much more
    shown = caplog.records[-1].exc_info
    assert shown is not None
    assert len("".join(traceback.format_exception(shown[1]))) < 30 * traces.MAX_BYTES
    assert type(error).__name__[:50] in caplog.text


def test_a_text_that_is_cut_shows_where_it_began_and_where_it_ended() -> None:
    cut = traces.clipped("begin" + HUGE + "end")
    assert cut.startswith("beginx")
    assert cut.endswith("xend")
    assert "1,000,008 characters" in cut
    assert traces.clipped("short") == "short"


def test_what_is_cut_of_a_group_keeps_its_shape(caplog: pytest.LogCaptureFixture) -> None:
    cause = huge_cause()
    write(LOGGER, logging.ERROR, "no", exc_info=ExceptionGroup("two", [cause, noted("a note", HUGE)]))
    for part in ("ExceptionGroup: two (2 sub-exceptions)", "KeyError: 'small'", "the direct cause",
                 "ValueError: x", "a note", "characters) …"):  # fmt: skip
        assert part in caplog.text


@pytest.mark.parametrize(
    "error", [ValueError("no"), nested(2, 2, "no"), noted("a", "b"), ValueError("\u202e")]
)
def test_an_ordinary_error_is_in_the_record_as_it_is(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    write(LOGGER, logging.ERROR, "no", exc_info=error)
    assert caplog.records[-1].exc_info == (type(error), error, error.__traceback__)


# ---------------------------------------------------------------------- what deceives

FORGED = "2026-11-28 CRITICAL root: all is lost"
EVIL = f"evil \u202e\x1b[2J\n{FORGED}\r{FORGED}\u2028{FORGED}"


def chained() -> Exception:
    try:
        raise KeyError("later") from ValueError(EVIL)
    except KeyError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [ValueError(EVIL), noted(EVIL), named("N\u202e\x1b"), chained(), nested(2, 1, EVIL), SyntaxError(EVIL),
     ExceptionGroup(EVIL, [ValueError("x")]), Reject(EVIL), noted(HUGE + EVIL)],
    ids=range(9),
)  # fmt: skip
@pytest.mark.parametrize("attempts", [1, 2])
def test_no_text_of_an_exception_can_deceive_who_reads_the_log(
    error: Exception, attempts: int, caplog: pytest.LogCaptureFixture
) -> None:
    message, _, subscription = failed_with(error)
    message._attempt = attempts  # the last one makes a dead letter
    failures.tell(message, Dispatcher(subscription).handle(message), subscription)
    (record,) = caplog.records
    assert record.exc_info is not None
    for char in "\u202e\x1b\r\u2028":
        assert char not in caplog.text
    first, *others = logging.Formatter("%(message)s").format(record).split("\n")
    assert first.startswith("Message orders/0/1-0 of group stock ")
    assert others
    assert all(line.startswith("  ") for line in others)


def test_what_a_complaint_tells_cannot_deceive_either(caplog: pytest.LogCaptureFixture) -> None:
    Complaints(LOGGER).say("cause", "It is %s: %s", EVIL, ValueError(EVIL + HUGE))
    assert "\n" not in caplog.records[-1].getMessage()
    assert "\\u202e\\x1b[2J\\x0a" in caplog.text
    assert len(caplog.text) < 5 * tracebacks.MAX_TEXT
