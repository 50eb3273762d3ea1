"""Two releases at work on one database, of which only one knows the newest columns of the copies of marks."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor

from bus.client import Bus
from bus.models import MarkCopy
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.transactions import marks
from tests.integration.views import Clock, Seer
from workers.upkeep.threads import Step, Upkeep

TOPIC, GROUP = "orders", "stock"
BEFORE, AFTER = "0005_inbox_floor", "0006_mark_copy_era"


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str, database: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.topic(TOPIC)
    bus.registry.project(bus.declared.specs().values())
    bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP)])
    yield bus
    bus.close()


def migrate(name: str) -> None:
    """To that state of the tables, without what `manage.py migrate` does besides."""
    MigrationExecutor(connection).migrate([("jitney", name)])


def settle(bus: Bus, count: int) -> list[str]:
    """Publish, hand out and settle so many messages, with the mark after them; their ids."""
    keys = bus.keys.partition(TOPIC, 0)
    ids = [bus.publish(TOPIC, number).id for number in range(count)]
    bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "STREAMS", keys.stream, ">")
    bus.client.call("XACK", keys.stream, GROUP, *ids)
    bus.client.call("SET", keys.mark(GROUP), ids[-1])
    return ids


def go_back(bus: Bus) -> None:
    """Redis comes back with data from before anything was settled."""
    keys = bus.keys.partition(TOPIC, 0)
    bus.client.call("XGROUP", "SETID", keys.stream, GROUP, "0")
    bus.client.call("DEL", keys.mark(GROUP))


def copied_by_the_older_release(bus: Bus, position: str) -> None:
    """The row as it writes it: it knows neither `era` nor `safe`."""
    born = next(group.born for group in bus.registry.groups() if group.name == GROUP)
    row = [bus.settings.prefix, TOPIC, 0, GROUP, born, position]
    named, quoted = (connection.ops.quote_name(column) for column in ("partition", "group"))
    place = f"prefix = %s AND topic = %s AND {named} = %s AND {quoted} = %s"
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE jitney_markcopy SET born = %s, position = %s WHERE {place}", [born, position, *row[:4]]
        )
        if not cursor.rowcount:
            cursor.execute(
                f"INSERT INTO jitney_markcopy (prefix, topic, {named}, {quoted}, born, position, copied) "
                "VALUES (%s, %s, %s, %s, %s, %s, CURRENT_TIMESTAMP)",
                row,
            )


def test_an_older_release_writes_beside_the_new_columns_and_nothing_is_passed_over_by_its_rows(
    bus: Bus,
) -> None:
    # Given that a worker of the older release copies the marks into the new table
    first = settle(bus, 3)
    copied_by_the_older_release(bus, first[-1])
    # When Redis comes back with older data, then its row is no reason to pass over anything
    go_back(bus)
    assert marks.advance(bus) == 0
    # When a newer worker has copied the marks, and the older one goes on
    keys = bus.keys.partition(TOPIC, 0)
    bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "STREAMS", keys.stream, ">")
    bus.client.call("XACK", keys.stream, GROUP, *first)
    bus.client.call("SET", keys.mark(GROUP), first[-1])
    marks.copy(bus)
    second = settle(bus, 2)
    copied_by_the_older_release(bus, second[-1])
    # Then what is passed over is what the newer one has copied
    go_back(bus)
    assert marks.advance(bus) == len(first)
    reply = bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "STREAMS", keys.stream, ">")
    assert [entry[0].decode() for entry in reply[0][1]] == second


def test_new_code_before_its_migration_says_so_serves_its_lanes_and_passes_nothing_over(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    settle(bus, 3)
    migrate(BEFORE)
    try:
        copied_by_the_older_release(bus, "99999999999999-0")
        clock = Clock()
        worker = Seer(bus, {f"{TOPIC}/{GROUP}"}, clock)
        with caplog.at_level(logging.WARNING, "jitney.workers"):
            # When its upkeep copies the marks, and when it looks after Redis came back with older data
            with pytest.raises(Error):
                marks.copy(bus)

            def copy_marks() -> None:
                marks.copy(bus)

            Upkeep("marks", [], is_leader=lambda: True)._attempt(Step(copy_marks, 1))
            go_back(bus)
            for _ in range(4):
                clock.now += 3
                worker.look()
        # Then it has its lane, both are said with what to do, and the messages come again
        assert len(worker.scheduler.owned()) == 1
        said = [each.getMessage() for each in caplog.records if "manage.py migrate" in each.getMessage()]
        assert len([text for text in said if "copies of the marks" in text]) >= 1
        assert len([text for text in said if "Upkeep (copy marks)" in text]) == 1
        keys = bus.keys.partition(TOPIC, 0)
        reply = bus.client.call("XREADGROUP", "GROUP", GROUP, "0", "STREAMS", keys.stream, ">")
        assert len(reply[0][1]) == 3
        worker.leave()
    finally:
        migrate(AFTER)
    # And after the migration the same process goes on, with the row of before
    bus.client.call("XACK", keys.stream, GROUP, *(entry[0] for entry in reply[0][1]))
    last = reply[0][1][-1][0].decode()
    bus.client.call("SET", keys.mark(GROUP), last)
    assert marks.copy(bus) == 1
    assert [row.safe for row in MarkCopy.objects.filter(prefix=bus.settings.prefix)] == [last]
