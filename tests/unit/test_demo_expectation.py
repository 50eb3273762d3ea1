"""What must come of records, and that file and generator are read alike by producer and check."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.exactness.expectation import Expectation, Published, csv_records, read_line
from demo.generator import generated_records
from demo.orders import COLUMNS, MalformedLine, key_of, parse
from demo.source import BadFile, check_file, file_records
from tests.unit.test_demo_orders import SALE


def lines(*quantities: int, product: str = "A") -> list[Published]:
    return [
        (f"file:{number}", "orders", {**SALE, "StockCode": product, "Quantity": str(quantity)})
        for number, quantity in enumerate(quantities, 1)
    ]


def test_an_alert_is_due_for_the_one_line_that_takes_a_product_below_20() -> None:
    # given  100 → 20 → 19 → 9 → 39 → 10
    expected = Expectation.of(lines(80, 1, 10, -30, 29))

    # then
    assert expected.alerts == {"file:2": ("A", 19), "file:5": ("A", 10)}
    assert expected.stock == {"A": 10}


@given(st.lists(st.integers(-99, 99).filter(bool), max_size=60))
def test_stock_is_100_plus_all_movements_and_alerts_are_its_falls_below_20(quantities: list[int]) -> None:
    expected = Expectation.of(lines(*quantities))

    assert expected.stock.get("A", 100) == 100 - sum(quantities)
    stocks = [100, *(stock for _, _, stock in expected.movements.values())]
    falls = sum(before >= 20 > after for before, after in pairwise(stocks))
    assert len(expected.alerts) == falls


@given(st.lists(st.integers(-99, 99).filter(bool), max_size=60))
def test_revenue_is_the_sum_of_all_bookings_to_the_penny(quantities: list[int]) -> None:
    expected = Expectation.of(lines(*quantities))

    assert sum(money for money, _ in expected.revenue.values()) == sum(expected.bookings.values())
    assert sum(count for _, count in expected.revenue.values()) == len(quantities)


def test_malformed_lines_are_counted_and_change_nothing() -> None:
    broken = ("file:2", "orders", {**SALE, "Quantity": "six"})

    expected = Expectation.of([*lines(5), broken])

    assert expected.malformed == {"orders": 1}
    assert expected.stock == {"A": 95}


FIELDS = st.one_of(st.sampled_from(list(SALE.values())), st.text(st.characters(codec="utf-8"), max_size=6))
HEADER = ",".join(COLUMNS)


@given(st.lists(st.lists(FIELDS, max_size=10).map(",".join), max_size=6).map("\n".join), st.booleans())
def test_producer_and_check_read_a_csv_file_alike_however_odd_it_is(body: str, more_columns: bool) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "orders.csv"
        path.write_text(f"{HEADER}{',Shop' if more_columns else ''}\n{body}\n", encoding="utf-8")
        published = list(file_records(path))
        read = list(csv_records(path, "file"))

    assert [origin for origin, _, _ in read] == [f"file:{number}" for number in range(1, len(published) + 1)]
    for record, (_, _, value) in zip(published, read, strict=True):
        try:
            line = parse(record.value)
        except MalformedLine:
            assert read_line(value) is None
        else:
            assert read_line(value) == (line.product, -line.sold, line.price, line.country, line.at)
            assert record.key == line.product


def test_a_file_in_another_encoding_is_published_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes(f"{HEADER}\n{','.join(SALE.values())} \xa3\n".encode("latin-1"))

    country = next(file_records(path)).value["Country"]
    assert country == "United Kingdom \N{REPLACEMENT CHARACTER}"


def test_a_file_without_the_columns_is_refused_with_their_names(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("InvoiceNo,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n")

    with pytest.raises(BadFile, match="has no column StockCode, Description in its first line"):
        check_file(path)


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot be read: No such file"):
        check_file(tmp_path / "absent.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(BadFile, match="has no column InvoiceNo"):
        check_file(tmp_path / "empty.csv")


def test_the_generator_gives_the_same_records_for_the_same_seed() -> None:
    assert list(islice(generated_records(7, 1, 2), 300)) == list(islice(generated_records(7, 1, 2), 300))
    assert list(islice(generated_records(7, 1, 2), 300)) != list(islice(generated_records(8, 1, 2), 300))


def test_producers_never_share_a_product() -> None:
    codes = [{record.key for record in islice(generated_records(1, number, 3), 2000)} for number in (1, 2, 3)]

    first, second, third = (names - {None} for names in codes)
    assert first.isdisjoint(second | third)
    assert second.isdisjoint(third)


def test_generated_orders_have_sales_returns_cancellations_alerts_and_a_few_malformed_lines() -> None:
    records = list(islice(generated_records(1, 1, 1), 5000))
    values = [record.value for record in records if record.topic == "orders"]

    expected = Expectation.of((str(n), record.topic, record.value) for n, record in enumerate(records))

    assert 0 < expected.malformed["orders"] < len(values) / 50
    assert any(value["InvoiceNo"].startswith("C") for value in values)
    assert len(expected.alerts) > 60  # products become scarce again and again
    assert expected.views
    assert all(record.key == key_of(record.value) for record in records if record.topic == "orders")
