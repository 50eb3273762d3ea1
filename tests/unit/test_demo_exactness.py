"""The demo's handlers under redelivery: whatever is repeated or breaks off, the check finds no difference."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

import bus
from bus.format import codec
from bus.format.netstrings import unpack
from bus.models import OutboxRow
from bus.transactions.inbox import Inbox
from demo import consumers
from demo.exactness.expectation import Expectation, Published
from demo.exactness.reconcile import Database, differences, wrong_dead_letters
from demo.models import PurchaseOrder, Revenue
from demo.topics import stock_alerts
from tests.unit.test_demo_orders import SALE

_publish = type(stock_alerts).publish_in_transaction


class Killed(BaseException):
    """The process ends here."""


class Bench:
    """Delivers records to the handlers, atomic ones through the inbox; alerts stay in the outbox."""

    def __init__(self, faults: Sequence[int] = ()) -> None:
        self._inbox = Inbox("inventory", "default")
        self.dead: dict[str, int] = {"orders/inventory": 0, "orders/revenue": 0}
        self._faults = iter(faults)
        self._ids = 0

    def message(self, value: Any, origin: str | None, topic: str = "orders") -> bus.Message:
        """A new message, at a position of its own."""
        self._ids += 1
        headers = {"origin": origin} if origin else None
        fields = codec.encode(topic, value, "key", headers, max_bytes=10**6)
        return bus.Message(topic, 0, f"{self._ids}-0", fields, codec.decode)

    def breaking(self, publish: Callable[..., None]) -> Callable[..., None]:
        """The topic's own publishing; killed before it, or after it in the same transaction, or not."""

        def publish_or_die(*args: Any, **options: Any) -> None:
            fault = next(self._faults, 0)
            if fault == 1:
                raise Killed
            publish(*args, **options)
            if fault == 2:
                raise Killed

        return publish_or_die

    def inventory(self, message: bus.Message) -> None:
        """Deliver until it is settled, as after every kill."""
        while True:
            try:
                self._inbox.handle(message, consumers.move_stock)
                return
            except bus.Reject:
                self.dead["orders/inventory"] += 1
                return
            except Killed:
                continue

    def revenue(self, messages: Sequence[bus.Message], *, count: bool = True) -> None:
        batch = Batch(messages)
        consumers.book(batch)
        if count:
            self.dead["orders/revenue"] += len(batch.rejected)

    def purchasing(self, times: int = 1) -> None:
        """Deliver all alerts."""
        rows = OutboxRow.objects.order_by("id").values_list("fields", flat=True)
        for fields in [unpack(bytes(row)) for row in rows] * times:
            self._ids += 1
            consumers.buy(bus.Message("stock-alerts", 0, f"{self._ids}-0", fields, codec.decode))

    def differences(self, records: Sequence[Published]) -> list[str]:
        raw: sqlite3.Connection = connection.connection
        expected = Expectation.of(records)
        return [
            *differences(expected, Database(raw)),
            *wrong_dead_letters(expected.malformed, {}, self.dead),
        ]


class Batch(list[bus.Message]):
    """What a batch handler gets."""

    def __init__(self, messages: Sequence[bus.Message]) -> None:
        super().__init__(messages)
        self.rejected: list[tuple[bus.Message, str]] = []

    def reject(self, message: bus.Message, reason: str) -> None:
        self.rejected.append((message, reason))


LINES = st.lists(
    st.fixed_dictionaries(
        {
            "StockCode": st.sampled_from(["A", "B", "C"]),
            "Quantity": st.integers(-60, 90).map(str) | st.just("six"),
            "InvoiceNo": st.sampled_from(["1", "1", "1", "C1"]),
            "InvoiceDate": st.sampled_from(["2010-12-01 08:26:00", "2010-12-01 09:00:00"]),
            "Country": st.sampled_from(["France", "Norway"]),
            "UnitPrice": st.sampled_from(["2.55", "0.1", "0.2", "0.000001", "-3"]),
        }
    ),
    max_size=12,
)


def published(lines: Sequence[dict[str, str]]) -> list[Published]:
    return [(f"file:{number}", "orders", {**SALE, **line}) for number, line in enumerate(lines, 1)]


def deliver(bench: Bench, messages: Sequence[bus.Message], again: Callable[[], int]) -> None:
    """All messages in order; now and then the last few run again, as after a takeover."""
    for place, message in enumerate(messages):
        bench.inventory(message)
        for old in messages[max(0, place + 1 - again()) : place + 1]:
            dead = dict(bench.dead)
            bench.inventory(old)
            bench.dead = dead  # a dead letter is settled, so it is not delivered again


class ExactnessTests(TestCase):
    """hypothesis.extra.django rolls back after each example."""

    @pytest.fixture(autouse=True)
    def _patching(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def bench(self, faults: Sequence[int] = ()) -> Bench:
        bench = Bench(faults)
        breaking = bench.breaking(_publish)
        self.monkeypatch.setattr(type(stock_alerts), "publish_in_transaction", breaking)
        return bench

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(LINES, st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 2), max_size=20))
    def test_stock_alerts_and_purchases_are_exact_whatever_runs_again(
        self, lines: list[dict[str, str]], again: list[int], faults: list[int]
    ) -> None:
        # given  records, kills around the publishing of alerts, and takeovers that repeat the last messages
        records = published(lines)
        bench = self.bench(faults)
        messages = [bench.message(value, origin) for origin, _, value in records]
        repeats = iter(again)

        # when
        deliver(bench, messages, lambda: next(repeats, 0))
        bench.purchasing(times=2)
        bench.revenue(messages)

        # then
        assert bench.differences(records) == []

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(LINES, st.lists(st.integers(0, 12), min_size=1, max_size=4))
    def test_revenue_is_exact_whatever_batches_come_again(
        self, lines: list[dict[str, str]], cuts: list[int]
    ) -> None:
        records = published(lines)
        bench = self.bench()
        messages = [bench.message(value, origin) for origin, _, value in records]
        for message in messages:
            bench.inventory(message)
        bench.purchasing()

        # when  batches overlap, and one of them names a message twice
        for cut in cuts:
            bench.revenue([*messages[cut:], *messages[cut : cut + 1]], count=False)
        bench.revenue(messages)

        assert bench.differences(records) == []

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(LINES, st.sets(st.integers(0, 11)))
    def test_a_record_published_twice_counts_once(self, lines: list[dict[str, str]], twice: set[int]) -> None:
        # given  a producer that lost some replies and published those valid records again
        records = [record for record in published(lines) if record[2]["Quantity"] not in ("six", "0")]
        bench = self.bench()
        messages = [
            bench.message(value, origin)
            for place, (origin, _, value) in enumerate(records)
            for _ in range(1 + (place in twice))
        ]

        for message in messages:
            bench.inventory(message)
        bench.purchasing()
        bench.revenue(messages)

        assert bench.differences(records) == []

    def test_revenue_rolls_back_the_sums_with_the_bookings(self) -> None:
        # given  a batch that fails after its bookings are written
        bench = self.bench()
        messages = [bench.message({**SALE, "Quantity": "2"}, "file:1")]
        add_up = consumers._add_up
        self.monkeypatch.setattr(consumers, "_add_up", lambda rows: (add_up(rows), 1 / 0))

        with pytest.raises(ZeroDivisionError):
            bench.revenue(messages)
        self.monkeypatch.setattr(consumers, "_add_up", add_up)
        bench.revenue(messages)

        assert [str(row.amount) for row in Revenue.objects.all()] == ["5.10"]

    def test_a_difference_is_found_and_named(self) -> None:
        bench = self.bench()
        records = published([{"Quantity": "90"}, {"Quantity": "5"}])
        bench.inventory(bench.message(records[0][2], "file:1"))
        bench.purchasing()
        PurchaseOrder.objects.update(stock=11)

        found = bench.differences(records)

        assert "purchase order file:1: expected 85123A, 10, found 85123A, 11" in found
        assert "movement file:2: expected 85123A, -5, 5, found nothing" in found
        assert "stock of 85123A: expected 5, found 10" in found

    def test_an_alert_that_is_none_becomes_a_dead_letter(self) -> None:
        bench = self.bench()
        for value in ("text", {}, {"cause": 7}, ["cause"]):
            with pytest.raises(bus.Reject, match="this is no stock alert"):
                consumers.buy(bench.message(value, None, "stock-alerts"))

    def test_views_are_counted_once_and_nameless_ones_are_refused(self) -> None:
        bench = self.bench()
        views = [({"product": "A"}, "p:1"), (["?"], "p:2")]
        batch = Batch([bench.message(value, origin, "page-views") for value, origin in views])

        consumers.look(batch)
        consumers.look(batch)

        assert bench.differences([("p:1", "page-views", {"product": "A"})]) == []
        assert [reason for _, reason in batch.rejected] == ["the view names no product"] * 2
