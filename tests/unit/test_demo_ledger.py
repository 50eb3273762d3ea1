"""The ledger of a producer, and the producer that keeps it exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import bus
from demo import producer
from demo.exactness.expectation import ledger_records, possible_copies
from demo.exactness.ledger import Ledger
from demo.exactness.reconcile import wrong_dead_letters
from demo.producer import Producer
from demo.source import Record
from tests.unit.test_demo_orders import SALE

RECORD = Record("orders", "A", {"StockCode": "A"})
RECEIPT = bus.Receipt("orders", 0, "1-0")


class Bus:
    """Answers publishes from a script; remembers what it has stored."""

    def __init__(self, *script: Exception | None) -> None:
        self._script = list(script)
        self.stored: list[tuple[str, Any]] = []

    def publish(
        self, topic: str, value: Any, *, key: str | None = None, headers: dict[str, str]
    ) -> bus.Receipt:
        answer = self._script.pop(0) if self._script else None
        if answer is None or isinstance(answer, bus.PublishUncertain):
            self.stored.append((headers["origin"], value))
        if answer is not None:
            raise answer
        return RECEIPT


class Stopping:
    """Signals of which the first has come after so many waits."""

    def __init__(self, waits: int = 10**9) -> None:
        self._left = waits

    @property
    def stopping(self) -> bool:
        return self._left <= 0

    def wait(self, seconds: float) -> None:
        self._left -= 1


def states(path: Path) -> list[tuple[int, str]]:
    return [(entry["n"], entry["state"]) for entry in map(json.loads, path.read_text().splitlines())]


def produce(
    path: Path, fake: Bus, records: list[Record], monkeypatch: pytest.MonkeyPatch, **stop: int
) -> None:
    monkeypatch.setattr(bus, "publish", fake.publish)
    monkeypatch.setattr(producer, "_LAST_PATIENCE", 0.0)
    ledger = Ledger(path)
    Producer(path.stem, ledger, Stopping(**stop)).run(iter(records), None)
    ledger.close()


def test_a_record_is_written_down_before_and_after_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.jsonl"

    produce(path, Bus(), [RECORD] * 2, monkeypatch)

    assert states(path) == [(1, "intended"), (1, "confirmed"), (2, "intended"), (2, "confirmed")]


@pytest.mark.parametrize(
    "error", [bus.BusUnavailable("away"), bus.BusFull("full"), bus.PublishUncertain("lost")]
)
def test_an_error_of_the_bus_is_waited_out_and_the_record_keeps_its_origin(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Bus(error, error)

    produce(tmp_path / "p.jsonl", fake, [RECORD], monkeypatch)

    assert {origin for origin, _ in fake.stored} == {"p:1"}
    repeated = [(1, "repeated")] * 2 if isinstance(error, bus.PublishUncertain) else []
    assert states(tmp_path / "p.jsonl") == [(1, "intended"), *repeated, (1, "confirmed")]


@pytest.mark.parametrize(
    ("error", "state"),
    [(bus.BusUnavailable("away"), "abandoned"), (bus.PublishUncertain("lost"), "uncertain")],
)
def test_a_producer_that_is_stopped_while_the_bus_is_away_says_what_it_knows(
    error: Exception, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.jsonl"

    produce(path, Bus(*[error] * 99), [RECORD] * 2, monkeypatch, waits=3)

    assert [entry for entry in states(path) if entry != (1, "repeated")] == [(1, "intended"), (1, state)]


def test_a_record_that_was_under_way_at_a_kill_is_never_said_to_be_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.jsonl"
    Ledger(path).intend(1, RECORD)

    produce(path, Bus(*[bus.BusUnavailable("away")] * 99), [RECORD], monkeypatch, waits=3)

    assert states(path)[-1] == (1, "uncertain")


def test_a_record_that_the_bus_refuses_is_replaced_by_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Bus(bus.InvalidMessage("too large"))

    produce(tmp_path / "p.jsonl", fake, [RECORD], monkeypatch)

    assert fake.stored == [("p:1", {"refused": "too large"})]


def test_a_killed_producer_goes_on_with_the_record_that_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given  record 1 confirmed, record 2 under way, and half a line
    path = tmp_path / "p.jsonl"
    ledger = Ledger(path)
    ledger.intend(1, RECORD)
    ledger.confirm(1, RECEIPT)
    ledger.intend(2, RECORD)
    ledger.close()
    with path.open("a") as file:
        file.write('{"n": 2, "sta')
    fake = Bus()

    # when
    produce(path, fake, [RECORD] * 3, monkeypatch)

    # then
    assert [origin for origin, _ in fake.stored] == ["p:2", "p:3"]
    assert states(path)[3:] == [(2, "intended"), (2, "confirmed"), (3, "intended"), (3, "confirmed")]
    assert possible_copies(tmp_path) == {"orders": 1}  # the record is malformed


def test_only_malformed_records_can_be_dead_letters_more_than_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = Record("orders", "85123A", SALE)

    produce(tmp_path / "p.jsonl", Bus(bus.PublishUncertain("lost")), [valid], monkeypatch)

    assert possible_copies(tmp_path) == {}
    assert not list(wrong_dead_letters({"orders": 2}, {"orders": 1}, {"orders/inventory": 3}))
    assert list(wrong_dead_letters({"orders": 2}, {"orders": 1}, {"orders/inventory": 4}))
    assert list(wrong_dead_letters({"orders": 2}, {"orders": 1}, {"orders/inventory": 1}))


@pytest.mark.parametrize(
    ("state", "stored", "counts"),
    [
        ("intended", True, True),
        ("intended", False, False),
        ("uncertain", True, True),
        ("uncertain", False, False),
        ("abandoned", True, False),
        ("confirmed", False, True),
    ],
)
def test_the_check_counts_a_record_without_receipt_only_if_it_was_stored(
    state: str, stored: bool, counts: bool, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "p.jsonl")
    ledger.intend(1, RECORD)
    if state == "confirmed":
        ledger.confirm(1, RECEIPT)
    elif state != "intended":
        ledger.give_up(1, uncertain=state == "uncertain")
    ledger.close()

    records = list(ledger_records(tmp_path, lambda origin: stored))

    assert records == ([("p:1", "orders", {"StockCode": "A"})] if counts else [])
