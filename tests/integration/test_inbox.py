"""The inbox: a handler's effect and the row that proves it are committed together, or not at all."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.transaction import TransactionManagementError

from bus import checks, default
from bus.client import Bus
from bus.consuming.subscriptions import Subscription
from bus.errors import ConfigurationError, InboxUnavailable, Reject
from bus.format import codec
from bus.models import AuditRecord, InboxRow, Topic
from bus.topics.registry import GroupSpec
from bus.transactions import inbox
from bus.transactions.inbox import Inbox
from bus.values import Message, RetryPolicy, TopicSpec, id_pair
from tests.integration.inline import InlineWorker
from tests.waiting import wait_until
from workers.consumer import Consumer
from workers.middleware import default_middleware
from workers.middleware.time_limit import SoftTimeLimitExceeded
from workers.slices.dispatch import Dispatcher

GROUP = "stock"


def message(id: str = "1700-1", *, era: str = "bus:1", partition: int = 0) -> Message:
    return Message("orders", partition, id, [b"v", b"1"], codec.decode, 1, None, era)


def effect(message: Message) -> None:
    AuditRecord.objects.create(source="cli", verb=message.id)


def effects() -> list[str]:
    return list(AuditRecord.objects.order_by("pk").values_list("verb", flat=True))


def rows() -> list[tuple[int, int]]:
    return list(InboxRow.objects.order_by("ms", "seq").values_list("ms", "seq"))


@pytest.fixture
def box(database: str) -> Inbox:
    return Inbox(GROUP, "default")


# ---------------------------------------------------------------------- single messages


def test_a_message_that_comes_twice_has_one_effect(box: Inbox) -> None:
    box.handle(message(), effect)
    box.handle(message(), effect)
    assert effects() == ["1700-1"]
    assert rows() == [(1700, 1)]


def test_ids_beyond_what_databases_call_numbers_are_told_apart_as_all_others(box: Inbox) -> None:
    ids = [
        "18446744073709551615-5",
        "18446744073709551615-6",
        f"{2**63}-0",
        f"{2**63 - 1}-0",
        f"1700-{2**64 - 1}",
    ]
    for each in [*ids, *ids]:
        box.handle(message(each), effect)
    assert effects() == ids
    assert set(rows()) == {id_pair(each) for each in ids}
    box.handle_batch([message(each) for each in [*ids, "1700-1"]], handle_all)
    assert effects() == [*ids, "1700-1"]


def handle_all(messages: list[Message]) -> list[str]:
    for each in messages:
        effect(each)
    return []


@pytest.mark.parametrize(
    "other",
    [
        (GROUP, message("1700-2")),
        (GROUP, message("1701-1")),
        (GROUP, message(partition=1)),
        (GROUP, message(era="bus:2")),
        ("ledger", message()),
    ],
    ids=["sequence", "time", "partition", "era", "group"],
)
def test_what_differs_in_any_part_of_the_key_is_another_message(box: Inbox, other: Any) -> None:
    group, second = other
    box.handle(message(), effect)
    Inbox(group, "default").handle(second, effect)
    assert len(effects()) == 2


def test_a_handler_that_raises_leaves_neither_effect_nor_row_and_can_run_again(box: Inbox) -> None:
    def fail(each: Message) -> None:
        effect(each)
        raise Reject("no")

    with pytest.raises(Reject):
        box.handle(message(), fail)
    assert (effects(), rows()) == ([], [])
    box.handle(message(), effect)
    assert effects() == ["1700-1"]


def test_an_integrity_error_of_the_handler_is_its_own(box: Inbox) -> None:
    Topic.objects.create(name="there")
    with pytest.raises(IntegrityError):
        box.handle(message(), lambda _: Topic.objects.create(name="there"))
    assert rows() == []


def test_an_insertion_that_fails_without_a_row_being_there_is_an_error(
    box: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise IntegrityError("some trigger says no")

    monkeypatch.setattr(box._floors, "settled", refuse)
    with pytest.raises(IntegrityError, match="some trigger"):
        box.handle(message(), effect)
    assert effects() == []


def _swallow_by_orm(_: Message) -> None:
    try:
        Topic.objects.create(name="there")
    except IntegrityError:
        return


def _swallow_by_sql(_: Message) -> None:
    conflict = "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'a deadlock'"
    try:
        with connection.cursor() as cursor:
            cursor.execute(conflict if connection.vendor == "mysql" else "INSERT INTO nowhere VALUES (1)")
    except Exception:
        if connection.vendor != "postgresql":
            # What SQLite does by itself when, say, the disk is full, and MariaDB after a deadlock.
            connection.connection.rollback()


@pytest.mark.parametrize("swallow", [_swallow_by_orm, _swallow_by_sql, lambda _: connection.close()])
def test_a_handler_that_goes_on_after_its_transaction_broke_is_not_taken_for_done(
    box: Inbox, swallow: Callable[[Message], None]
) -> None:
    Topic.objects.create(name="there")

    def handler(each: Message) -> None:
        effect(each)
        swallow(each)

    with pytest.raises(Exception, match=r"cannot be committed|closed in|in a transaction|a deadlock"):
        box.handle(message(), handler)
    assert (effects(), rows()) == ([], [])


def test_a_handler_may_catch_an_error_in_an_atomic_block_of_its_own(box: Inbox) -> None:
    Topic.objects.create(name="there")

    def handler(each: Message) -> None:
        effect(each)
        with pytest.raises(IntegrityError), transaction.atomic():
            Topic.objects.create(name="there")

    box.handle(message(), handler)
    assert (effects(), rows()) == (["1700-1"], [(1700, 1)])


def test_in_a_transaction_that_an_earlier_handler_left_open_nothing_is_handled(box: Inbox) -> None:
    transaction.set_autocommit(False)
    try:
        with pytest.raises(TransactionManagementError, match="autocommit"):
            box.handle(message(), effect)
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert effects() == []


@pytest.mark.parametrize("first_fails", [False, True])
def test_of_two_workers_with_the_same_message_the_second_waits_and_sees_what_became_of_it(
    box: Inbox, first_fails: bool
) -> None:
    # Given a worker that is in the middle of the message, such as one that was frozen
    in_it, go_on = threading.Event(), threading.Event()
    outcomes: list[str] = []

    def slow(each: Message) -> None:
        effect(each)
        in_it.set()
        assert go_on.wait(20)
        if first_fails:
            raise Reject("no")

    def run(name: str, handler: Callable[[Message], None]) -> None:
        try:
            Inbox(GROUP, "default").handle(message(), handler)
            outcomes.append(f"{name} done")
        except Reject:
            outcomes.append(f"{name} failed")
        finally:
            connection.close()

    first = threading.Thread(target=run, args=("first", slow))
    first.start()
    assert in_it.wait(20)

    # when its successor gets the same message
    second = threading.Thread(target=run, args=("second", effect))
    second.start()
    assert outcomes == []
    go_on.set()
    first.join(20)
    second.join(30)

    # then there is one effect
    assert effects() == ["1700-1"]
    assert sorted(outcomes) == [f"first {'failed' if first_fails else 'done'}", "second done"]


def test_deadlocks_between_handlers_are_no_failed_attempts(box: Inbox) -> None:
    # Given two handlers that change the same rows in opposite order, at the same time at first
    for name in ("a", "b"):
        Topic.objects.create(name=name)
    both = threading.Barrier(2)
    failures: list[BaseException] = []

    def run(id: str, *names: str) -> None:
        def handler(each: Message) -> None:
            effect(each)
            Topic.objects.filter(name=names[0]).update(notes=id)
            with suppress(threading.BrokenBarrierError):
                both.wait(1 if connection.vendor == "sqlite" else 20)
                both.abort()
            Topic.objects.filter(name=names[1]).update(notes=id)

        try:
            Inbox(GROUP, "default").handle(message(id), handler)
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [
        threading.Thread(target=run, args=args) for args in (("1700-1", "a", "b"), ("1700-2", "b", "a"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    # then the one that the database gave up begins again
    assert failures == []
    assert sorted(effects()) == ["1700-1", "1700-2"]
    assert rows() == [(1700, 1), (1700, 2)]


def test_a_conflict_that_never_ends_is_a_failure_at_last(box: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "is_conflict", lambda _: True)
    calls: list[str] = []

    def handler(each: Message) -> None:
        calls.append(each.id)
        raise OperationalError("a deadlock")

    with pytest.raises(OperationalError):
        box.handle(message(), handler)
    assert len(calls) == inbox.TRIES


def test_groups_that_differ_in_upper_and_lower_case_are_two(box: Inbox) -> None:
    box.handle(message(), effect)
    Inbox(GROUP.upper(), "default").handle(message(), effect)
    box.handle(message(era="BUS:1"), effect)
    assert len(effects()) == 3


# ---------------------------------------------------------------------- batches


def test_a_batch_leaves_out_what_is_known(box: Inbox) -> None:
    box.handle(message("1700-1"), effect)
    seen: list[list[str]] = []

    def handler(fresh: list[Message]) -> set[str]:
        seen.append([each.id for each in fresh])
        for each in fresh:
            effect(each)
        return set()

    batch = [message("1700-1"), message("1700-2"), message("1701-1")]
    box.handle_batch(batch, handler)
    box.handle_batch(batch, handler)
    assert seen == [["1700-2", "1701-1"]]
    assert effects() == ["1700-1", "1700-2", "1701-1"]


def test_messages_that_a_batch_handler_refuses_keep_no_row(box: Inbox) -> None:
    batch = [message(f"1700-{number}") for number in range(250)]
    box.handle_batch(batch, lambda fresh: {each.id for each in fresh[50:]})
    assert rows() == [(1700, number) for number in range(50)]


def test_a_batch_in_which_another_worker_handles_a_message_is_not_handled(box: Inbox) -> None:
    def handler(fresh: list[Message]) -> set[str]:
        raise AssertionError("the insertion comes first")

    def look(_: Any) -> set[Any]:
        return set()  # the other worker has not committed yet

    box.handle(message("1700-2"), effect)
    box._known = look  # type: ignore[method-assign]
    with pytest.raises(IntegrityError):
        box.handle_batch([message("1700-1"), message("1700-2")], handler)
    assert rows() == [(1700, 2)]


def test_a_batch_whose_commit_is_impossible_raises(box: Inbox) -> None:
    Topic.objects.create(name="there")

    def handler(fresh: list[Message]) -> set[str]:
        _swallow_by_orm(fresh[0])
        return set()

    with pytest.raises(TransactionManagementError, match="cannot be committed"):
        box.handle_batch([message()], handler)
    assert rows() == []


# ---------------------------------------------------------------------- within the worker


def dispatcher(handler: Any, **options: Any) -> Dispatcher:
    subscription = Subscription(topic="orders", group=GROUP, handler=handler, atomic="default", **options)
    return Dispatcher(subscription, default_middleware)


def test_a_soft_time_limit_rolls_the_transaction_back(database: str) -> None:
    def slow(each: Message) -> None:
        effect(each)
        while True:
            time.sleep(0.01)

    failed = dispatcher(slow, soft_time_limit=0.1).handle(message())
    assert failed is not None
    assert isinstance(failed.exception, SoftTimeLimitExceeded)
    assert (effects(), rows()) == ([], [])


def test_an_atomic_batch_handler_refuses_single_messages_as_any_other(database: str) -> None:
    def handler(batch: Any) -> None:
        effect(batch[0])
        batch.reject(batch[1], "no")

    one = dispatcher(handler, batch=10)
    failed = one.handle_batch([message("1700-1"), message("1700-2")])
    assert failed is not None
    assert {id: each.kind for id, each in failed.items()} == {"1700-2": "dead"}
    assert (effects(), rows()) == (["1700-1"], [(1700, 1)])


def test_a_database_that_is_migrated_just_when_its_tables_are_missed_costs_no_attempt(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a migration that ends between the failure and the look why it failed
    call_command("migrate", "jitney", "0004", verbosity=0)
    introspection = connection.introspection
    look = introspection.table_names

    def migrated_meanwhile(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(introspection, "table_names", look)
        call_command("migrate", "jitney", verbosity=0)
        return look(*arguments, **options)

    monkeypatch.setattr(introspection, "table_names", migrated_meanwhile)

    assert dispatcher(effect).handle(message("1700-1")) is None

    assert (effects(), rows()) == (["1700-1"], [(1700, 1)])


def test_an_unknown_alias_is_an_error_at_the_start_of_a_worker_and_in_the_system_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = Subscription(topic="orders", group=GROUP, handler=effect, atomic="elsewhere")
    with pytest.raises(ConfigurationError, match="no alias of DATABASES"):
        Consumer(Bus("redis://nowhere.invalid:1/0"), [wrong], slots=1)
    monkeypatch.setattr(default, "subscriptions", [wrong])
    (error,) = checks.check_handlers()
    assert error.id == "jitney.E004"


# ---------------------------------------------------------------------- with the server


@pytest.fixture
def bus(server: Any, database: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=f"t{uuid.uuid4().hex[:10]}")
    bus.registry.project([TopicSpec(name="orders")])
    bus.registry.declare_groups([GroupSpec(topic="orders", name=GROUP)])
    yield bus
    bus.close()


def era_of(bus: Bus) -> str:
    found: bytes = bus.client.call("HGET", bus.keys.partition("orders", 0).state(GROUP), "era")
    return found.decode()


def test_a_worker_handles_once_what_is_delivered_again(bus: Bus) -> None:
    handler = Subscription(topic="orders", group=GROUP, handler=effect, atomic="default")
    ids = [bus.publish("orders", number).id for number in range(20)]
    with InlineWorker(bus, [handler]):
        wait_until(lambda: len(effects()) == 20, 20, "all to be handled")
        # When a stopped clock, a lost acknowledgement or an operator has half of them delivered again
        bus.client.call("XGROUP", "SETID", bus.keys.partition("orders", 0).stream, GROUP, ids[9])
        later = bus.publish("orders", 20).id
        wait_until(lambda: later in effects(), 20, "what was published later")
    assert effects() == [*ids, later]
    assert {row.era for row in InboxRow.objects.all()} == {era_of(bus)}


def test_a_group_whose_database_is_not_migrated_waits_and_makes_no_dead_letter(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Subscription(
        topic="orders", group=GROUP, handler=effect, atomic="default", retry=RetryPolicy(attempts=1)
    )
    call_command("migrate", "jitney", "0004", verbosity=0)
    ids = [bus.publish("orders", number).id for number in range(3)]
    with InlineWorker(bus, [handler]):
        wait_until(lambda: "run `manage.py migrate jitney" in caplog.text, 20, "the log to say so")
        call_command("migrate", "jitney", verbosity=0)
        wait_until(lambda: len(effects()) == 3, 30, "all to be handled")
    assert effects() == ids
    assert bus.client.call("EXISTS", bus.keys.partition("orders", 0).dead(GROUP)) == 0


@pytest.mark.parametrize("batch", [None, 10])
def test_a_handler_that_says_by_itself_that_the_inbox_is_away_has_failed(
    database: str, batch: int | None
) -> None:
    def handle(_delivery: Any) -> None:
        raise InboxUnavailable("told to say so")

    subscription = Subscription(topic="orders", group=GROUP, handler=handle, atomic="default", batch=batch)
    dispatcher = Dispatcher(subscription, default_middleware)
    failed = dispatcher.handle(message()) if batch is None else dispatcher.handle_batch([message()])
    assert failed
    assert effects() == []
    assert rows() == []
