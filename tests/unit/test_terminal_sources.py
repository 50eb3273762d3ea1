"""JSON lines and CSV as the command line reads them."""

from __future__ import annotations

import io
from typing import Any

import pytest

from bus.terminal.sources import Format, Lines, SourceError, rows


def read(data: bytes, form: Format, longest: int = 1000) -> list[tuple[int, Any]]:
    return list(rows(Lines(io.BufferedReader(io.BytesIO(data)), longest), form))


def test_json_lines_are_numbered_and_empty_ones_are_left_out() -> None:
    assert read(b'{"a": 1}\n\n[2]\r\n"last"', "jsonl") == [(1, {"a": 1}), (3, [2]), (4, "last")]


def test_a_line_that_is_not_json_is_named() -> None:
    source = rows(Lines(io.BytesIO(b"1\n2\n{oops\n4\n"), 1000), "jsonl")

    assert [next(source), next(source)] == [(1, 1), (2, 2)]
    with pytest.raises(SourceError, match="not JSON") as caught:
        next(source)
    assert caught.value.line == 3


def test_csv_rows_become_dictionaries_of_text() -> None:
    data = '\ufeffsku,text\r\nA1,"two\nlines, and a comma"\r\nB2,é\r\n'.encode()

    assert read(data, "csv") == [
        (2, {"sku": "A1", "text": "two\nlines, and a comma"}),
        (4, {"sku": "B2", "text": "é"}),
    ]


@pytest.mark.parametrize(
    ("data", "line", "text"),
    [
        (b"a,b\n1,2\n3\n", 3, "1 columns, where the first line has 2"),
        (b"a,b\n1,2,3\n", 2, "3 columns"),
        (b"a,a\n1,2\n", 1, "twice"),
        (b'a,b\n1,"never ends\n', 2, "not CSV"),
        (b"a,b\n1,\xff\n", 2, "not UTF-8"),
    ],
)
def test_a_csv_line_that_is_wrong_is_named(data: bytes, line: int, text: str) -> None:
    with pytest.raises(SourceError, match=text) as caught:
        read(data, "csv")
    assert caught.value.line == line


@pytest.mark.parametrize("data", [b"1\n" + b"9" * 5000, b"1\n" + b"9" * 5000 + b"\n"])
def test_a_line_without_end_is_refused_before_it_fills_the_memory(data: bytes) -> None:
    with pytest.raises(SourceError, match="longer than 1,000 bytes") as caught:
        read(data, "jsonl")
    assert caught.value.line == 2


def test_a_pipe_is_not_ready_while_its_next_line_is_still_to_come() -> None:
    import os

    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "wb", buffering=0) as end:
        lines = Lines(pipe, 1000)
        end.write(b"1\n2\n")

        assert lines.ready
        assert next(lines) == b"1"
        assert lines.ready
        assert next(lines) == b"2"
        assert not lines.ready
        assert lines.size is None


def test_a_byte_order_mark_is_no_part_of_the_first_value():
    for text, form in (('{"a": 1}\n{"a": 2}\n', "jsonl"), ("a\n1\n2\n", "csv")):
        found = [value for _, value in rows(Lines(io.BytesIO(b"\xef\xbb\xbf" + text.encode()), 100), form)]
        assert [str(value["a"]) for value in found] == ["1", "2"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_file_in_utf_16_is_told_from_one_that_is_broken(encoding):
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    lines = Lines(io.BytesIO(mark + '{"a": 1}\n'.encode(encoding)), 100)
    with pytest.raises(SourceError, match="UTF-16: save the file as UTF-8"):
        list(rows(lines, "jsonl"))
