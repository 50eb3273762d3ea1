"""Exceptions become outcomes here and nowhere else, and none of them gets past."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import itertools
import logging
import sqlite3
import threading
from datetime import timedelta
from decimal import Decimal

import orjson
import pytest

from bus.consuming.subscriptions import Subscription
from bus.errors import ConfigurationError, InboxUnavailable, Reject, Retry
from bus.format import codec
from bus.format.state import MAX_ERROR
from bus.safety.complaints import Complaints
from bus.signals import message_dead
from bus.values import Message, RetryPolicy
from tests import loops
from workers.batch import Batch
from workers.middleware.time_limit import async_time_limit
from workers.slices import failures
from workers.slices.dispatch import Dispatcher, Failed

GOOD = [b"v", b"1"]
POLICY = RetryPolicy(attempts=3, delay=2.0, factor=2.0, jitter=0)


def message(number=1, *, fields=GOOD, attempt=1):
    return Message("orders", 0, f"{number}-0", list(fields), codec.decode, attempt)


def dispatcher(handler, middleware=(), async_middleware=(), **options):
    options = {"retry": POLICY, **options}
    subscription = Subscription(topic="orders", group="stock", handler=handler, **options)
    return Dispatcher(subscription, middleware, async_middleware, run=loops.run)


def raising(error):
    def handler(_delivery):
        raise error

    return handler


# ---------------------------------------------------------------------- one message


def test_a_handler_that_returns_is_done_with_its_message():
    assert dispatcher(lambda message: "whatever").handle(message()) is None


def test_an_exception_is_a_retry_with_the_delay_of_the_policy():
    handle = dispatcher(raising(ValueError("no"))).handle
    first, second = handle(message(attempt=1)), handle(message(attempt=2))
    assert (first.kind, first.delay) == ("retry", 2.0)
    assert (second.kind, second.delay) == ("retry", 4.0)
    assert "ValueError: no" in first.error


def test_the_last_attempt_makes_a_dead_letter_that_says_so():
    failed = dispatcher(raising(ValueError("no"))).handle(message(attempt=3))
    assert failed.kind == "dead"
    assert failed.reason == "ValueError: no (attempt 3 of 3)"


def test_reject_is_a_dead_letter_at_once():
    failed = dispatcher(raising(Reject("no such article"))).handle(message())
    assert (failed.kind, failed.reason) == ("dead", "no such article")


def test_retry_names_its_own_delay_and_still_counts_as_an_attempt():
    handle = dispatcher(raising(Retry(delay=10))).handle
    assert (handle(message()).kind, handle(message()).delay) == ("retry", 10)
    assert handle(message(attempt=3)).kind == "dead"


def test_a_negative_delay_is_none():
    assert dispatcher(raising(Retry(delay=-5))).handle(message()).delay == 0


def test_what_is_not_in_retry_on_or_is_in_dead_on_is_dead_at_once():
    picky = dispatcher(raising(KeyError("x")), retry_on=(OSError,))
    assert picky.handle(message()).kind == "dead"
    strict = dispatcher(raising(KeyError("x")), dead_on=(LookupError,))
    assert strict.handle(message()).kind == "dead"


def test_retry_is_tried_again_whatever_retry_on_says():
    assert dispatcher(raising(Retry()), retry_on=(OSError,)).handle(message()).kind == "retry"


@pytest.mark.parametrize(
    "fields", [[b"v", b"{"], [b"x", b"1"], [b"v", b"1", b"k", b"\xff"], [b"v", b"1", b"h", b"[]"]]
)
def test_what_nobody_can_read_is_dead_and_never_reaches_the_handler(fields):
    called = []
    failed = dispatcher(called.append).handle(message(fields=fields))
    assert failed.kind == "dead"
    assert failed.reason.startswith("undecodable: ")
    assert called == []


def test_a_coroutine_handler_is_awaited():
    seen = []

    async def handler(delivery):
        seen.append(delivery.value)

    assert dispatcher(handler).handle(message()) is None
    assert seen == [1]


def test_middleware_sees_messages_from_the_outside_in():
    calls = []

    def layer(name):
        def wrap(_subscription, handler):
            def call(delivery):
                calls.append(name)
                return handler(delivery)

            return call

        return wrap

    dispatcher(lambda _: calls.append("handler"), [layer("outer"), layer("inner")]).handle(message())
    assert calls == ["outer", "inner", "handler"]


# ---------------------------------------------------------------------- exceptions out of the ordinary


def test_an_error_text_is_cut_at_its_beginning_because_the_end_says_where_it_broke():
    failed = dispatcher(raising(ValueError("x" * MAX_ERROR * 2 + "END"))).handle(message())
    assert len(failed.error) <= MAX_ERROR
    assert "END" in failed.error


@pytest.mark.parametrize("error", [ValueError("a\udcffb"), Reject("a\udcffb"), Retry("a\udcffb")], ids=repr)
@pytest.mark.parametrize("attempt", [1, 3])
def test_an_error_text_that_is_not_utf_8_can_still_be_recorded(error, attempt):
    # As in the text of an OSError about a file whose name is not UTF-8
    failed = dispatcher(raising(error)).handle(message(attempt=attempt))
    orjson.dumps([failed.reason, failed.error])


def test_an_exception_whose_text_raises_is_an_outcome_like_any_other():
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError("not even this")

    assert dispatcher(raising(Broken())).handle(message()).kind == "retry"


# ---------------------------------------------------------------------- batches


def batch(*numbers):
    return [message(number) for number in numbers]


def test_a_batch_handler_gets_all_messages_in_order():
    seen = []
    assert (
        dispatcher(lambda batch: seen.extend(m.id for m in batch), batch=10).handle_batch(batch(1, 2, 3))
        == {}
    )
    assert seen == ["1-0", "2-0", "3-0"]


def test_a_batch_handler_refuses_single_messages():
    def handler(batch):
        batch.reject(batch[0], "bad")
        batch.retry(batch[2], delay=7)

    failed = dispatcher(handler, batch=10).handle_batch(batch(1, 2, 3))
    assert {id: (each.kind, each.delay) for id, each in failed.items()} == {
        "1-0": ("dead", 0),
        "3-0": ("retry", 7),
    }


def test_a_batch_that_raises_is_to_be_delivered_one_by_one():
    assert dispatcher(raising(ValueError("no")), batch=10).handle_batch(batch(1, 2)) is None


def test_a_batch_of_one_that_raises_is_the_failure_of_its_message():
    failed = dispatcher(raising(ValueError("no")), batch=10).handle_batch(batch(1))
    assert failed["1-0"].kind == "retry"


def test_unreadable_messages_are_taken_out_of_a_batch():
    seen = []
    bad = message(2, fields=[b"v", b"{"])
    failed = dispatcher(lambda batch: seen.extend(m.id for m in batch), batch=10).handle_batch(
        [message(1), bad, message(3)]
    )
    assert seen == ["1-0", "3-0"]
    assert failed["2-0"].kind == "dead"


def test_a_batch_of_unreadable_messages_does_not_reach_the_handler():
    failed = dispatcher(raising(AssertionError("called")), batch=10).handle_batch(
        [message(1, fields=[b"v", b"{"])]
    )
    assert failed["1-0"].kind == "dead"


def test_a_handler_that_returns_an_awaitable_is_not_taken_for_done():
    async def later(_message):
        return None

    def hidden(given):
        return later(given)

    failed = dispatcher(hidden).handle(message())
    assert failed is not None
    assert "awaitable" in failed.error


def forgotten(times=3):
    """A factory of decorators, to be used with parentheses."""

    def decorate(function):
        @functools.wraps(function)
        def wrapper(message):
            return function(message)

        return wrapper

    return decorate


@contextlib.contextmanager
def entered():
    yield


@contextlib.asynccontextmanager
async def entered_soon():
    yield


class Callable:
    def __call__(self):
        """To be called by somebody."""


async def numbers():
    yield 1


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: forgotten(print), "function"),
        (lambda: print, "nobody calls it"),
        (lambda: functools.partial(print), "partial"),
        (Callable, "Callable"),
        (lambda: Callable, "type"),
        (entered, "enters it by `with`"),
        (entered_soon, "enters it by `with`"),
        (lambda: itertools.chain.from_iterable([[1]]), "chain"),
        (lambda: itertools.starmap(print, []), "starmap"),
        (lambda: map(print, []), "map"),
        (lambda: zip([], [], strict=True), "zip"),
        (lambda: iter([1]), "list_iterator"),
        (lambda: (number for number in [1]), "generator"),
        (numbers, "async_generator"),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_a_handler_that_returns_what_is_still_to_be_run_is_not_done(make, why, batched):
    one = dispatcher(lambda _: make(), batch=10 if batched else None)
    failed = one.handle_batch(batch(1))["1-0"] if batched else one.handle(message())
    assert failed is not None
    assert "so it has not run" in failed.error
    assert why in failed.error


def test_a_decorator_without_its_parentheses_is_told_in_plain_words():
    failed = dispatcher(forgotten(lambda _: None)).handle(message())
    assert failed is not None
    assert "Does a decorator lack its parentheses?" in failed.error


class Row:
    """What a handler may return, like an instance of a model."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: None, Row, lambda: [1], lambda: {"a": 1}, lambda: "a", lambda: 1.5, lambda: {1}, object,
        lambda: Decimal(1), lambda: range(3), lambda: io.StringIO("a"), threading.Lock,
        lambda: sqlite3.connect(":memory:").execute("CREATE TABLE t (a)"),
    ],
)  # fmt: skip
def test_a_handler_that_returns_a_value_is_done(make):
    assert dispatcher(lambda _: make()).handle(message()) is None


def test_a_soft_limit_ends_an_async_batch_handler_where_it_waits():
    went_on = []

    async def slow(batch):
        await asyncio.sleep(30)
        went_on.append(batch)

    limited = dispatcher(slow, (), (async_time_limit,), batch=10, soft_time_limit=0.01)
    failed = limited.handle_batch([message()])
    assert "SoftTimeLimitExceeded" in next(iter(failed.values())).reason
    assert went_on == []


# ---------------------------------------------------------------------- what is no Exception


class Panic(BaseException):
    """As of a library in Rust."""


OUTSIDE = [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError, Panic]


@pytest.mark.parametrize("error", OUTSIDE)
@pytest.mark.parametrize("how", ["def", "async def", "batch", "async batch", "at once"])
def test_what_is_no_exception_is_an_attempt_with_its_traceback(error, how):
    async def later(_delivery):
        raise error

    async def at_once(one):
        return await one.handle_async(message())

    handler = later if how in ("async def", "async batch", "at once") else raising(error)
    one = dispatcher(handler, batch=10 if "batch" in how else None, retry_on=(OSError,))
    if how == "at once":
        failed = loops.run(at_once(one))
    elif "batch" in how:
        assert one.handle_batch(batch(1, 2)) is None
        failed = one.handle_batch(batch(1))["1-0"]
    else:
        failed = one.handle(message())
    assert failed.kind == "retry"
    assert "Traceback" in failed.error
    assert error.__name__ in failed.error


@pytest.mark.parametrize("error", [*OUTSIDE, ValueError])
@pytest.mark.parametrize("how", ["def", "async def", "batch"])
def test_what_ends_the_process_from_outside_is_let_through(error, how):
    async def later(_delivery):
        raise error

    handler = later if how == "async def" else raising(error)
    subscription = Subscription(
        topic="orders", group="stock", handler=handler, retry=POLICY, batch=5 if how == "batch" else None
    )
    ending = Dispatcher(subscription, run=loops.run, is_ending=lambda: True)
    with pytest.raises(SystemExit):
        ending.handle_batch(batch(1, 2)) if how == "batch" else ending.handle(message())


# ---------------------------------------------------------------------- what has not run


def _generate(given):
    yield given


async def _generate_later(given):
    yield given


@pytest.mark.parametrize(
    "lazy",
    [_generate, _generate_later, lambda given: map(print, [given]), lambda given: filter(print, [given])],
)
@pytest.mark.parametrize("how", ["def", "batch", "async def"])
def test_a_handler_that_returns_what_nobody_iterates_over_is_not_taken_for_done(lazy, how):
    async def later(given):
        return lazy(given)

    one = dispatcher(later if how == "async def" else lazy, batch=5 if how == "batch" else None)
    failed = one.handle_batch(batch(1))["1-0"] if how == "batch" else one.handle(message())
    assert failed.kind == "retry"
    assert "has not run" in failed.error


# ---------------------------------------------------------------------- order within a batch


def test_a_batch_handler_does_not_get_those_that_wait_behind_one_that_is_tried_again():
    def handler(given):
        for each in given:
            seen.append(each.id)
            given.retry(each)

    seen = []
    keyed = [message(number, fields=[b"v", b"1", b"k", b"a"]) for number in (1, 2)]
    failed = dispatcher(handler, batch=10).handle_batch(keyed)
    assert seen == ["1-0"]
    assert {id: each.kind for id, each in failed.items()} == {"1-0": "retry", "2-0": "behind"}


def test_a_batch_whose_order_is_broken_is_delivered_one_by_one_even_if_the_handler_hides_it(caplog):
    def handler(given):
        one, _other = list(given)
        try:
            given.retry(one)
        except Exception:
            return

    keyed = [message(number, fields=[b"v", b"1", b"k", b"a"]) for number in (1, 2)]
    assert dispatcher(handler, batch=10).handle_batch(keyed) is None
    assert "Loop over the batch itself" in caplog.text


def test_a_batch_keeps_its_messages_in_the_order_in_effect_not_in_that_of_the_code():
    def handler(batch):
        for each in batch:
            if each.id == "1-0":
                batch.retry(each)

    keyed = [message(number, fields=[b"v", b"1", b"k", key]) for number, key in ((1, b"a"), (2, b"b"))]
    assert set(dispatcher(handler, batch=10).handle_batch(keyed)) == {"1-0"}
    assert set(dispatcher(handler, batch=10).handle_batch(keyed, "partition")) == {"1-0", "2-0"}


# ---------------------------------------------------------------------- what nothing can be made of


class Unprintable(Exception):
    def __str__(self):
        raise SystemExit(3)


class Bare(Retry):
    def __init__(self):
        pass


class Unasked(Retry):
    @property
    def delay(self):
        raise KeyboardInterrupt

    @delay.setter
    def delay(self, _delay):
        pass


def changed(delay):
    error = Retry("changed")
    error.delay = delay
    return error


BROKEN = {
    "unprintable": Unprintable("x"),
    "no text": SyntaxError("x", ("f.py", 1, 1, b"line")),
    "bare": Bare(),
    "unasked": Unasked(),
    "text": changed("soon"),
    "list": changed([1]),
    "infinite": changed(float("inf")),
    "no number": changed(float("nan")),
    "long": changed(10**400),
    "group": BaseExceptionGroup("many", [SyntaxError("x", ("f.py", 1, 1, b"line"))]),
    "inbox": InboxUnavailable("told to say so"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("batch", [None, 10])
def test_whatever_an_exception_is_made_of_it_is_an_attempt_by_the_policy(kind, batch):
    error = BROKEN[kind]
    handle = dispatcher(raising(error), batch=batch)
    for attempt, wanted in ((1, ("retry", 2.0)), (2, ("retry", 4.0)), (3, ("dead", 0.0))):
        given = message(attempt=attempt)
        failed = handle.handle(given) if batch is None else handle.handle_batch([given])[given.id]
        assert (failed.kind, failed.delay) == wanted
        assert type(error).__name__ in failed.error
        orjson.dumps([failed.reason, failed.error])


@pytest.mark.parametrize("kind", BROKEN)
def test_whatever_an_exception_is_made_of_it_can_be_told_of(kind, caplog):
    subscription = dispatcher(raising(BROKEN[kind])).subscription
    for outcome in ("retry", "dead"):
        failures.tell(message(), Failed(outcome, "x", "x", exception=BROKEN[kind]), subscription)
        assert "Message orders/0/1-0 of group stock" in caplog.text
        assert caplog.records[-1].exc_info
        caplog.clear()


def test_a_log_that_cannot_be_written_to_breaks_nothing(monkeypatch, capfd):
    def refuse(_record):
        raise RuntimeError("told to break the log")

    logger = logging.getLogger("jitney.workers")
    logger.addFilter(refuse)
    monkeypatch.setattr(failures, "complaints", Complaints(logger))
    try:
        failed = Failed("retry", "x", "x", exception=ValueError("no"))
        failures.tell(message(), failed, dispatcher(print).subscription)
    finally:
        logger.removeFilter(refuse)
    assert "Message orders/0/1-0 of group stock failed" in capfd.readouterr().err


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, ValueError])
def test_a_receiver_of_a_signal_breaks_nothing(error, caplog):
    def receive(**_):
        raise error

    message_dead.connect(receive)
    try:
        failed = Failed("dead", "x", "x", exception=ValueError("no"))
        failures.tell(message(), failed, dispatcher(print).subscription)
    finally:
        message_dead.disconnect(receive)
    assert "is a dead letter" in caplog.text
    assert error.__name__ in caplog.text


@pytest.mark.parametrize("delay", ["soon", b"1", [1], True, float("inf"), float("nan"), 1e300, 10**400])
def test_a_delay_that_is_no_finite_time_is_refused_where_it_is_given(delay):
    with pytest.raises(ConfigurationError, match="delay must be seconds or a timedelta, up to 100 years"):
        Retry(delay=delay)
    failed = dispatcher(lambda _: Retry(delay=delay)).handle(message())
    assert failed.kind == "retry"
    assert "delay must be seconds" in failed.reason
    batch = Batch([message()], "key")
    with pytest.raises(ConfigurationError):
        batch.retry(batch[0], delay=delay)
    assert batch.refused == {}


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        (timedelta(minutes=1), 60.0),
        (1, 1.0),
        (-1, 0.0),
        (timedelta(seconds=-1), 0.0),
        (-(10**400), 0.0),
        (None, None),
    ],
)
def test_a_delay_is_seconds_or_a_timedelta(delay, seconds):
    assert Retry(delay=delay).delay == seconds
    batch = Batch([message()], "key")
    batch.retry(batch[0], delay=delay)
    assert batch.refused["1-0"].delay == seconds


def test_a_handler_that_changes_its_message_fails():
    def forget(given):
        given.attempt = 0

    failed = dispatcher(forget).handle(message(attempt=3))
    assert failed.kind == "dead"
    assert "AttributeError" in failed.reason
    for name in ("topic", "partition", "id", "attempt"):
        with pytest.raises(AttributeError):
            setattr(message(), name, 1)


def test_what_the_inbox_says_is_no_fault_of_the_message_unless_the_handler_says_it():
    def unavailable(_subscription, _handler):
        return raising(InboxUnavailable("no tables"))

    with pytest.raises(InboxUnavailable):
        dispatcher(print, (unavailable,), atomic="default").handle(message())
    begun = InboxUnavailable("told to say so")
    begun.begun = True
    assert dispatcher(raising(begun), atomic="default").handle(message()).kind == "retry"
