"""publish_on_commit: sent after the commit, not after a rollback; a failure is heard of and stops nobody."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import TestCase

import bus as jitney
from bus import default
from bus.client import Bus
from bus.errors import BusUnavailable, InvalidMessage, UnknownTopic

pytestmark = pytest.mark.usefixtures("database")


def fail_after(*messages: tuple[str, Any]) -> None:
    """Publish in a transaction (or savepoint) that is rolled back."""

    def work() -> None:
        for topic, value in messages:
            jitney.publish_on_commit(topic, value)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        work()


@pytest.fixture
def bus(server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=f"t{uuid.uuid4().hex[:10]}")
    bus.topic("orders")
    bus.registry.project(bus.declared.specs().values())
    monkeypatch.setattr(default, "get", lambda: bus)
    yield bus
    bus.close()


def stored(bus: Bus) -> list[bytes]:
    return [
        entry[1][1] for entry in bus.client.call("XRANGE", bus.keys.partition("orders", 0).stream, "-", "+")
    ]


def test_messages_are_sent_after_the_commit_in_their_order(bus: Bus) -> None:
    with transaction.atomic():
        for number in range(3):
            jitney.publish_on_commit("orders", number, key="A1", headers={"tenant": "de"})
        assert stored(bus) == []
    assert stored(bus) == [b"0", b"1", b"2"]


def test_after_a_rollback_nothing_is_sent(bus: Bus) -> None:
    fail_after(("orders", 1))
    assert stored(bus) == []


def test_a_savepoint_that_is_rolled_back_takes_its_messages_with_it(bus: Bus) -> None:
    handle = bus.topic("orders")
    with transaction.atomic():
        handle.publish_on_commit(1)
        fail_after(("orders", 2))
        handle.publish_on_commit(3)
    assert stored(bus) == [b"1", b"3"]


def test_without_a_transaction_it_is_sent_at_once_and_raises_at_once(bus: Bus) -> None:
    jitney.publish_on_commit("orders", 1)
    assert stored(bus) == [b"1"]
    with pytest.raises(UnknownTopic):
        jitney.publish_on_commit("nowhere", 1)


def test_a_message_id_is_stored_once(bus: Bus) -> None:
    for _ in range(2):
        with transaction.atomic():
            jitney.publish_on_commit("orders", 1, message_id="order-991")
    assert stored(bus) == [b"1"]


def test_an_invalid_message_is_an_error_inside_of_the_transaction(bus: Bus) -> None:
    with transaction.atomic():
        with pytest.raises(InvalidMessage):
            jitney.publish_on_commit("orders", object())
        with pytest.raises(InvalidMessage):
            jitney.publish_on_commit("orders", 1, delay=-1)
        assert connection.run_on_commit == []


def test_the_value_is_that_of_the_call(bus: Bus) -> None:
    value = {"qty": 1}
    with transaction.atomic():
        jitney.publish_on_commit("orders", value)
        value["qty"] = 2
    assert stored(bus) == [b'{"qty":1}']


def test_a_failure_is_logged_and_raised_after_all_other_hooks(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def work() -> None:
        transaction.on_commit(lambda: seen.append("before"))
        jitney.publish_on_commit("nowhere", {"secret": 1})
        transaction.on_commit(lambda: seen.append("between"))
        jitney.publish_on_commit("elsewhere", {"secret": 2})
        jitney.publish_on_commit("orders", 3)
        transaction.on_commit(lambda: seen.append("after"))

    with pytest.raises(UnknownTopic, match="nowhere") as caught, transaction.atomic():
        work()

    assert seen == ["before", "between", "after"]
    assert stored(bus) == [b"3"]
    assert [note for note in caught.value.__notes__ if "elsewhere" in note]
    records = [record for record in caplog.records if record.name == "bus.on_commit"]
    assert [record.levelno for record in records] == [logging.ERROR] * 2
    assert all(record.exc_info for record in records)
    assert "'nowhere'" in records[0].getMessage()
    assert "secret" not in caplog.text


def test_the_transaction_is_committed_although_a_publish_fails(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bus.models import Topic

    def away(*_: Any) -> None:
        raise BusUnavailable("away")

    monkeypatch.setattr(bus.publisher, "send", away)

    def work() -> None:
        Topic.objects.create(name="kept")
        jitney.publish_on_commit("orders", 1)

    with pytest.raises(BusUnavailable), transaction.atomic():
        work()
    assert Topic.objects.filter(name="kept").exists()


def test_a_failure_after_a_savepoint_was_rolled_back_raises(bus: Bus) -> None:
    def work() -> None:
        jitney.publish_on_commit("nowhere", 1)
        fail_after(("orders", 2))

    with pytest.raises(UnknownTopic), transaction.atomic():
        work()
    assert connection.run_on_commit == []


def test_the_hooks_of_the_next_transaction_are_not_touched_by_a_failure(bus: Bus) -> None:
    with pytest.raises(UnknownTopic), transaction.atomic():
        jitney.publish_on_commit("nowhere", 1)
    with transaction.atomic():
        jitney.publish_on_commit("orders", 1)
    assert stored(bus) == [b"1"]


def test_in_a_test_case_messages_are_captured_and_executed(bus: Bus) -> None:
    class Case(TestCase):
        def runTest(self) -> None:  # noqa: N802 - as unittest asks
            with self.captureOnCommitCallbacks() as callbacks:
                jitney.publish_on_commit("orders", 1)
            assert len(callbacks) == 1
            assert stored(bus) == []
            with self.captureOnCommitCallbacks(execute=True):
                jitney.publish_on_commit("orders", 2)
            assert stored(bus) == [b"2"]
            with pytest.raises(UnknownTopic), self.captureOnCommitCallbacks(execute=True):
                jitney.publish_on_commit("nowhere", 3)

    Case.setUpClass()
    try:
        result = Case().run()
    finally:
        Case.tearDownClass()
    assert result is not None
    assert (result.errors, result.failures) == ([], [])
    assert stored(bus) == [b"2"]
