"""What an order line is, as the handlers read it and as the check reads it."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.exactness.expectation import read_line
from demo.orders import COLUMNS, MalformedLine, key_of, parse

SALE = {
    "InvoiceNo": "536365",
    "StockCode": "85123A",
    "Description": "WHITE HANGING HEART",
    "Quantity": "6",
    "InvoiceDate": "2010-12-01 08:26:00",
    "UnitPrice": "2.55",
    "CustomerID": "17850.0",
    "Country": "United Kingdom",
}


def test_a_sale_takes_pieces_out_of_stock_and_earns_money() -> None:
    line = parse(SALE)

    assert (line.product, line.sold, line.country) == ("85123A", 6, "United Kingdom")
    assert line.amount == Decimal("15.30")
    assert line.at == datetime(2010, 12, 1, 8, 26)


@pytest.mark.parametrize(
    ("invoice", "quantity", "sold"),
    [("536365", "-6", -6), ("C536379", "-1", -1), ("C536379", "1", -1), ("536365", "6", 6)],
)
def test_returns_and_cancellations_bring_stock_back_and_pay_back(
    invoice: str, quantity: str, sold: int
) -> None:
    line = parse({**SALE, "InvoiceNo": invoice, "Quantity": quantity})

    assert line.sold == sold
    assert line.amount == sold * Decimal("2.55")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Quantity": "six"}, "Quantity 'six' is not a whole number of at most 7 digits"),
        ({"Quantity": "6.0"}, "Quantity '6.0' is not a whole number of at most 7 digits"),
        ({"Quantity": "٦"}, "Quantity '٦' is not a whole number of at most 7 digits"),
        ({"Quantity": "0"}, "Quantity is 0: the line moves nothing"),
        ({"Quantity": 6}, "Quantity is not a text: 6"),
        ({"UnitPrice": ""}, "UnitPrice '' is not a price"),
        ({"UnitPrice": "NaN"}, "UnitPrice 'NaN' is not a price"),
        ({"UnitPrice": "1e3"}, "UnitPrice '1e3' is not a price"),
        ({"StockCode": "  "}, "StockCode is blank"),
        ({"InvoiceDate": "yesterday"}, "InvoiceDate 'yesterday' is not a time such as 2010-12-01 08:26:00"),
        ({"InvoiceDate": "2010-02-30 08:26:00"}, "InvoiceDate '2010-02-30 08:26:00': day is out of range"),
        ({"more": ["x"]}, "with unknown columns: 'more'"),
        ({"Description": "x" * 10_001}, "Description has 10,001 characters"),
    ],
)
def test_a_malformed_line_says_what_is_wrong_with_it(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(MalformedLine) as caught:
        parse({**SALE, **change})

    assert str(caught.value).startswith(reason)


def test_a_line_without_columns_names_them() -> None:
    short = {name: SALE[name] for name in COLUMNS[:6]}

    with pytest.raises(MalformedLine, match="without CustomerID, Country"):
        parse(short)


@pytest.mark.parametrize("value", [None, 7, [], "text", b"bytes"])
def test_what_is_no_object_is_malformed(value: Any) -> None:
    with pytest.raises(MalformedLine, match="an order line is an object with 8 columns"):
        parse(value)


def test_the_key_is_the_product_without_spaces_around_it() -> None:
    assert key_of({"StockCode": " 85123A "}) == parse({**SALE, "StockCode": " 85123A "}).product
    assert key_of({"StockCode": " "}) is None
    assert key_of({}) is None


TEXTS = st.one_of(
    st.text(max_size=12),
    st.from_regex(r"-?[0-9]{1,9}(\.[0-9]{0,7})?", fullmatch=True),
    st.from_regex(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2} [0-9]{2}:[0-9]{2}(:[0-9]{2})?", fullmatch=True),
    st.datetimes().map(lambda at: str(at.replace(microsecond=0))),
    st.sampled_from(["C536379", "0", "-0", "1.", ".5", "-", "", " 7 ", "+3", "1_000", "2010-12-01T08:26:00"]),
)


@given(st.dictionaries(st.sampled_from(COLUMNS), TEXTS, max_size=3))
def test_handlers_and_check_agree_about_every_line(changes: dict[str, str]) -> None:
    record = {**SALE, **changes}

    try:
        line = parse(record)
        read = (line.product, -line.sold, line.price, line.country, line.at)
    except MalformedLine:
        read = None

    assert read_line(record) == read


@given(st.sampled_from(["Quantity", "UnitPrice", "InvoiceDate"]), TEXTS)
def test_handlers_and_check_agree_about_every_number_and_date(column: str, text: str) -> None:
    record = {**SALE, column: text}

    try:
        valid = bool(parse(record))
    except MalformedLine:
        valid = False

    assert (read_line(record) is not None) == valid
