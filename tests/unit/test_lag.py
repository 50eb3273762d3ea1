"""Lag without a server: what is proven, what is summed, how far counting goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bus.observe.facts import GroupFacts, StreamFacts
from bus.observe.info import Info
from bus.observe.lag import CALL_BUDGET, ENTRIES_A_REPLY, PARTITION_BUDGET, ROUNDS, LagCount, count, proven
from bus.observe.members import holder
from bus.sums import Lag
from bus.values import id_pair


def stream(length: int = 10, first: str | None = "100-0", last: str | None = "200-0") -> StreamFacts:
    return StreamFacts(length, 1000, first, last, None, {})


def group(position: str, lag: int | None = None) -> GroupFacts:
    return GroupFacts(position, lag, 0, ())


# ---------------------------------------------------------------------- proven


@pytest.mark.parametrize("keeps_lag", [True, False])
@pytest.mark.parametrize("figure", [None, -89, 0, 6, 999])
@pytest.mark.parametrize(
    ("position", "lag"),
    [
        ("0-0", 10),  # before the first
        ("99-18446744073709551615", 10),  # before it by one, where text or floats would compare wrongly
        ("100-0", 9),  # at the first
        ("200-0", 0),  # at the last
        ("1000-0", 0),  # ahead of it
    ],
)
def test_at_the_ends_of_a_stream_lag_needs_no_server_figure(
    position: str, lag: int, figure: int | None, keeps_lag: bool
) -> None:
    assert proven(stream(), group(position, figure), keeps_lag=keeps_lag) == lag


@pytest.mark.parametrize("first", [None, "100-0"])
def test_an_empty_stream_has_no_lag(first: str | None) -> None:
    assert proven(stream(0, None, "200-0"), group("100-0", 7), keeps_lag=True) == 0
    assert proven(stream(0, None, None), group("0-0"), keeps_lag=True) == 0


def test_inside_a_stream_the_figure_is_believed_from_a_server_that_keeps_it() -> None:
    assert proven(stream(), group("150-0", 4), keeps_lag=True) == 4


def test_inside_a_stream_the_figure_is_not_believed_from_a_server_that_loses_it() -> None:
    assert proven(stream(), group("150-0", 4), keeps_lag=False) is None


@pytest.mark.parametrize("figure", [None, -89, 0, 10, 11])
def test_a_figure_that_cannot_be_is_not_believed(figure: int | None) -> None:
    # the position is after the first and before the last of 10, so the lag is 1 to 9
    assert proven(stream(), group("150-0", figure), keeps_lag=True) is None


# ---------------------------------------------------------------------- counting


class Streams:
    """Stands in for a client: streams of `length` messages of `size` bytes, with ids 1-0, 2-0, …"""

    def __init__(self, length: int, size: int = 100) -> None:
        self.length, self.size = length, size
        self.trips: list[int] = []

    def pipe(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        replies = [self._range(*command) for command in commands]
        self.trips.append(sum(len(reply) for reply in replies))
        return replies

    def _range(self, _verb: str, _key: str, start: str, end: str, _count: str, page: int) -> list[Any]:
        (after, _), (last, _) = id_pair(start[1:]), id_pair(end)
        ids = range(after + 1, min(last, self.length, after + page) + 1)
        return [[b"%d-0" % number, [b"v", b"x" * self.size]] for number in ids]


def lag_counts(streams: Streams, number: int, after: str = "0-0") -> list[LagCount]:
    return [LagCount(f"s{index}", after, f"{streams.length}-0") for index in range(number)]


@pytest.mark.parametrize(
    "length",
    [
        0,
        1,
        ENTRIES_A_REPLY - 1,
        ENTRIES_A_REPLY,
        ENTRIES_A_REPLY + 1,
        3 * ENTRIES_A_REPLY,
        PARTITION_BUDGET - 1,
    ],
)
def test_counting_is_exact_within_the_budget(length: int) -> None:
    streams = Streams(length)
    (lag_count,) = lag_counts(streams, 1)
    count(streams, [lag_count])  # type: ignore[arg-type]  # it needs `pipe` alone
    assert lag_count.lag() == Lag(length)


def test_counting_stops_at_the_position_where_it_began_to_look() -> None:
    streams = Streams(500)
    lag_count = LagCount("s", "100-0", "300-0")
    count(streams, [lag_count])  # type: ignore[arg-type]
    assert lag_count.lag() == Lag(200)


def test_counting_one_partition_beyond_its_budget_says_at_least() -> None:
    streams = Streams(PARTITION_BUDGET * 3)
    (lag_count,) = lag_counts(streams, 1)
    count(streams, [lag_count])  # type: ignore[arg-type]
    assert lag_count.lag() == Lag(PARTITION_BUDGET, exact=False)
    assert len(streams.trips) <= ROUNDS


@pytest.mark.parametrize("number", [2, 7, 100, 3000, CALL_BUDGET + 1])
def test_counting_many_partitions_shares_one_budget(number: int) -> None:
    streams = Streams(PARTITION_BUDGET * 3)
    counted = lag_counts(streams, number)
    count(streams, counted)  # type: ignore[arg-type]
    assert sum(streams.trips) <= CALL_BUDGET
    assert len(streams.trips) <= ROUNDS
    found = [lag_count.counted for lag_count in counted]
    assert max(found) - min(found) <= ENTRIES_A_REPLY
    assert not any(lag_count.lag().exact for lag_count in counted)


def test_counting_large_messages_asks_for_small_pages() -> None:
    streams = Streams(PARTITION_BUDGET, size=1 << 20)
    (lag_count,) = lag_counts(streams, 1, after=f"{PARTITION_BUDGET - 30}-0")
    lag_count.take(1, streams._range("", "", f"({lag_count.after}", lag_count.end, "", 1))
    count(streams, [lag_count])  # type: ignore[arg-type]
    assert max(streams.trips) <= 8
    assert lag_count.lag() == Lag(30)


# ---------------------------------------------------------------------- INFO and leases


@pytest.mark.parametrize(
    ("info", "kind", "version", "keeps_lag"),
    [
        (b"redis_version:7.0.15\r\n", "Redis", "7.0.15", False),
        (b"redis_version:7.2.4\r\n", "Redis", "7.2.4", False),
        (b"redis_version:7.4.0\r\n", "Redis", "7.4.0", True),
        (b"redis_version:8.10.2\r\n", "Redis", "8.10.2", True),
        (
            b"# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n",
            "Valkey",
            "9.1.2",
            True,
        ),
        (b"redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:7.2.5\r\n", "Valkey", "7.2.5", False),
        (b"role:master\r\n", "Redis", "unknown", False),
    ],
)
def test_the_server_is_known_by_its_own_name(info: bytes, kind: str, version: str, keeps_lag: bool) -> None:
    parsed = Info.parse(info)
    assert (parsed.kind, parsed.version, parsed.keeps_lag) == (kind, version, keeps_lag)


@pytest.mark.parametrize(
    ("lease", "owner"),
    [(None, None), (b"", None), (b"free:1a2b", None), (b"w1-77:1a2b", "w1-77"), (b"a:b:1a2b", "a:b")],
)
def test_a_lease_names_its_owner_unless_it_is_free(lease: bytes | None, owner: str | None) -> None:
    assert holder(lease) == owner
