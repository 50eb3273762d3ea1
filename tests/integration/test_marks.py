"""Copies of marks: few commands, and only what has changed is written."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from bus.client import Bus
from bus.models import MarkCopy
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.transactions import marks
from bus.values import TopicSpec

TOPIC, GROUP = "orders", "stock"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.registry.project([TopicSpec(name=TOPIC, partitions=64)])
    bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP)])
    yield bus
    bus.close()


def positions(bus: Bus) -> dict[int, str]:
    rows = MarkCopy.objects.filter(prefix=bus.settings.prefix)
    return dict(rows.values_list("partition", "position"))


def test_only_marks_that_have_changed_are_written(bus: Bus) -> None:
    keys = [bus.keys.partition(TOPIC, number).mark(GROUP) for number in range(64)]
    for number, key in enumerate(keys):
        bus.client.call("SET", key, f"{number}-1")
    known: dict[marks.MarkRef, str] = {}
    assert marks.copy(bus, known) == 64
    assert positions(bus) == {number: f"{number}-1" for number in range(64)}
    # When nothing changes, then nothing is written
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert marks.copy(bus, known) == 64
    assert [query for query in queries if "INSERT" in query["sql"]] == []
    # When one changes, and one is gone and comes again as it was
    bus.client.call("SET", keys[3], "99-0")
    bus.client.call("DEL", keys[5])
    assert marks.copy(bus, known) == 63
    assert positions(bus)[3] == "99-0"
    MarkCopy.objects.filter(partition=5).delete()
    bus.client.call("SET", keys[5], "5-1")
    marks.copy(bus, known)
    assert positions(bus)[5] == "5-1"


def test_marks_are_read_by_one_command_those_that_changed_by_one_more_and_a_foreign_one_is_passed_over(
    bus: Bus,
) -> None:
    bus.client.call("RPUSH", bus.keys.partition(TOPIC, 0).mark(GROUP), "foreign")
    bus.client.call("SET", bus.keys.partition(TOPIC, 1).mark(GROUP), "7-0")
    bus.client.call("CONFIG", "RESETSTAT")
    known: dict[marks.MarkRef, str] = {}
    assert marks.copy(bus, known) == 1
    stats = bus.client.call("INFO", "commandstats").decode()
    assert "cmdstat_mget:calls=2," in stats  # the second with their eras
    assert "cmdstat_hget:calls=1," in stats
    assert "cmdstat_get:" not in stats
    bus.client.call("CONFIG", "RESETSTAT")
    assert marks.copy(bus, known) == 1
    stats = bus.client.call("INFO", "commandstats").decode()
    assert "cmdstat_mget:calls=1," in stats
    assert "cmdstat_hget:" not in stats


def test_a_copied_mark_passes_over_nothing_of_a_stream_that_was_made_again(bus: Bus) -> None:
    # Given a group whose mark is far ahead of the clock, as that of a message with a strange id is
    keys = bus.keys.partition(TOPIC, 0)
    state, far = keys.state(GROUP), "18446744073709551615-5"
    bus.client.call("XADD", keys.stream, far, "v", "1")
    bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "STREAMS", keys.stream, ">")
    bus.client.call("XACK", keys.stream, GROUP, far)
    bus.client.call("SET", keys.mark(GROUP), far)
    known: dict[marks.MarkRef, str] = {}
    marks.copy(bus, known)
    before = bus.client.call("HGET", state, "era")
    # When the stream is removed and another one takes its place
    bus.client.call("DEL", keys.stream)
    first = bus.client.call("XADD", keys.stream, "*", "v", "2").decode()
    bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP)])
    era = bus.client.call("HGET", state, "era")
    assert era != before
    # Then none of its messages is settled by the mark of the one before
    assert marks.advance(bus) == 0
    assert bus.client.call("XPENDING", keys.stream, GROUP)[0] == 0
    reply = bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "STREAMS", keys.stream, ">")
    assert [entry[0].decode() for entry in reply[0][1]] == [first]
    # And its own mark counts: Redis may come back with data that are older than that
    bus.client.call("XACK", keys.stream, GROUP, first)
    bus.client.call("SET", keys.mark(GROUP), first)
    marks.copy(bus, known)
    assert MarkCopy.objects.get(partition=0).era == era.decode()
    bus.client.call("XGROUP", "SETID", keys.stream, GROUP, "0")
    bus.client.call("DEL", keys.mark(GROUP))
    assert marks.advance(bus) == 1
    assert bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "STREAMS", keys.stream, ">") is None
