"""Copies of marks: few commands, and only what has changed is written."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from bus import marks
from bus.client import Bus
from bus.models import MarkCopy
from bus.registry import GroupSpec
from bus.streams.embedded import EmbeddedServer
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
    known: dict[marks.Place, str] = {}
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


def test_all_marks_are_read_by_one_command_and_a_foreign_one_is_passed_over(bus: Bus) -> None:
    bus.client.call("RPUSH", bus.keys.partition(TOPIC, 0).mark(GROUP), "foreign")
    bus.client.call("SET", bus.keys.partition(TOPIC, 1).mark(GROUP), "7-0")
    bus.client.call("CONFIG", "RESETSTAT")
    assert marks.copy(bus) == 1
    stats = bus.client.call("INFO", "commandstats").decode()
    assert "cmdstat_mget:calls=1," in stats
    assert "cmdstat_get:" not in stats
