"""Records of workers and leases: what is ours is read, what is not is told apart, and never raises."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.format import lease
from bus.format.lane_id import LaneId
from bus.format.worker_record import WorkerRecord, read_table

KEY = "bus:workers"
FULL: dict[str, Any] = {
    "host": "web-1", "pid": 7, "boot": "b", "pidns": "pid:[1]", "start": 99, "started": 1_700_000_000_000,
    "groups": ["g"], "serves": ["t/g"], "processes": 4, "leaving": False, "declines": ["t/3/g"], "unheld": [],
    "beat": 12,
}  # fmt: skip
GOOD = (b"good", orjson.dumps(FULL))


def read(*rows: tuple[bytes, bytes]) -> Any:
    return read_table(KEY, [part for row in rows for part in row])


def test_a_whole_record_is_read() -> None:
    record = read(GOOD).records["good"]
    assert (record.host, record.pid, record.beat, record.processes) == ("web-1", 7, 12, 4)
    assert record.serves == {"t/g"}
    assert record.declines == {LaneId("t", 3, "g")}
    assert record.serves_group("t", "g")
    assert not record.serves_group("other", "g")


def test_fields_of_a_newer_version_are_passed_over_and_those_that_an_older_one_lacks_are_none() -> None:
    newer = orjson.dumps({**FULL, "future": {"a": [1]}, "more": None})
    older = orjson.dumps({"host": "h", "pid": 1, "groups": ["g"], "beat": 3})
    table = read((b"newer", newer), (b"older", older))
    assert table.unreadable == ()
    assert table.records["newer"].serves == {"t/g"}
    assert table.records["older"] == WorkerRecord(incarnation="older", beat=3, host="h", pid=1, groups=("g",))
    assert table.records["older"].serves_group("any", "g")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 5000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"7", "is not a JSON object"),
        (b"{}", "has no `beat`"),
        (b'{"beat":true}', "has a `beat` that is none"),
        (b'{"beat":1,"started":99999999999999999}', "has a `started` that is none"),
        (b'{"beat":1,"serves":"t/g"}', "has a `serves` that is none"),
        (b'{"beat":1,"declines":["t/x/g"]}', "has a `declines` that is none"),
        (b'{"beat":1,"declines":["t/1"]}', "has a `declines` that is none"),
        (b'{"beat":1,"pid":1e99}', "has a `pid` that is none"),
        (b'{"beat":99999999999999999999999}', "has a `beat` that is none"),
    ],
)
def test_what_is_no_record_is_named_with_its_key_and_field_and_harms_no_other(raw: bytes, why: str) -> None:
    table = read((b"junk", raw), GOOD)
    assert set(table.records) == {"good"}
    [found] = table.unreadable
    assert (found.key, found.field, found.why) == (KEY, "junk", why)
    assert len(found.raw) <= 201
    # It may be a newer version that writes other records: whether it lives shows in any change
    changed = read((b"junk", raw + b" "), GOOD)
    assert table.counters["junk"] != changed.counters["junk"]
    assert table.counters["good"] == changed.counters["good"]


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError):  # integers beyond 64 bits, lone surrogates
        return repr(value).encode("utf-8", "replace")


changed = st.dictionaries(st.sampled_from(sorted(FULL)), json).map(lambda wrong: _dumps({**FULL, **wrong}))
junk = st.binary(max_size=40) | json.map(_dumps) | changed


@given(st.dictionaries(st.binary(max_size=12), junk, max_size=5))
def test_whatever_stands_in_the_table_is_a_record_or_unreadable_and_the_good_one_is_read(
    rows: dict[bytes, bytes],
) -> None:
    rows.pop(GOOD[0], None)
    table = read(*rows.items(), GOOD)
    assert table.records["good"] == read(GOOD).records["good"]
    assert len(table.records) + len(table.unreadable) == len(rows) + 1
    for each in table.unreadable:
        assert str(each).isprintable()
    assert all(name.isprintable() for name in table.counters)


@given(st.binary(max_size=60))
def test_a_lease_gives_back_the_bytes_that_were_read_and_junk_belongs_to_nobody_who_may_live(
    raw: bytes,
) -> None:
    value = lease.read(raw)
    assert lease.raw(value) == raw
    owner = lease.owner_of(value)
    if not lease.is_readable(value):
        assert owner.startswith(("b'", 'b"'))  # no incarnation has a quote in it


@pytest.mark.parametrize(
    ("raw", "owner"),
    [
        (None, ""),
        (b"", ""),
        (b"free:w1-7", ""),
        (b"w1:7", "w1"),
        (b"\xff\xfe", "b'\\xff\\xfe'"),
        (b"w1", "b'w1'"),
        (b"x y:7", "b'x y:7'"),
    ],
)
def test_who_holds_a_lease(raw: bytes | None, owner: str) -> None:
    assert lease.owner_of(lease.read(raw)) == owner
