"""Topics in code, in the database and in Redis."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import OperationalError

import bus as public
from bus import default
from bus.client import Bus
from bus.errors import BusUnavailable, UnknownTopic
from bus.models import Topic
from bus.operating import declarations
from bus.streams.embedded import EmbeddedServer
from bus.topics import rows
from bus.values import TopicSpec

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_topic_of_code_becomes_a_row_and_its_streams(bus: Bus) -> None:
    bus.topic("orders", partitions=3, retention="7d")

    report = declarations.sync(bus)

    row = Topic.objects.get(name="orders")
    assert (row.partitions, row.retention, row.origin) == (3, timedelta(days=7), "code")
    assert bus.registry.specs() == {"orders": row.spec}
    assert bus.client.call("EXISTS", *(bus.keys.partition("orders", n).stream for n in range(3))) == 3
    assert (report.created, report.projected, report.problems) == (["orders"], ["orders"], [])


def test_sync_twice_changes_nothing(bus: Bus) -> None:
    bus.topic("orders")
    declarations.sync(bus)

    report = declarations.sync(bus)

    assert (report.created, report.changed, report.projected) == ([], [], [])


def test_a_row_follows_what_code_says_now_but_keeps_its_notes(bus: Bus) -> None:
    Topic.objects.create(name="orders", partitions=2, origin="admin", notes="Ask Ada.")
    bus.topic("orders", partitions=4, retention="1h")

    report = declarations.sync(bus)

    row = Topic.objects.get(name="orders")
    assert (row.partitions, row.retention, row.origin) == (4, timedelta(hours=1), "code")
    assert row.notes == "Ask Ada."
    assert report.changed == ["orders"]


def test_fewer_partitions_in_code_are_a_problem_in_words_and_stop_nothing_else(bus: Bus) -> None:
    Topic.objects.create(name="orders", partitions=8, origin="code")
    bus.topic("orders", partitions=4)
    bus.topic("alerts", partitions=1)

    report = declarations.sync(bus)

    assert "cannot shrink" in report.problems[0]
    assert {name: spec.partitions for name, spec in bus.registry.specs().items()} == {
        "alerts": 1,
        "orders": 8,
    }


def test_more_partitions_in_redis_than_in_the_database_are_a_problem_and_stay(bus: Bus) -> None:
    bus.registry.project([TopicSpec(name="orders", partitions=8)])
    Topic.objects.create(name="orders", partitions=4)

    report = declarations.sync(bus)

    assert "Redis has 8" in report.problems[0]
    assert bus.registry.specs()["orders"].partitions == 8


def test_sync_makes_streams_again_that_redis_has_lost(bus: Bus) -> None:
    bus.topic("orders", partitions=2)
    declarations.sync(bus)
    stream = bus.keys.partition("orders", 1).stream
    bus.client.call("DEL", stream)

    declarations.sync(bus)

    assert bus.client.call("EXISTS", stream) == 1


def test_every_kind_of_drift_is_told_in_words(bus: Bus) -> None:
    bus.topic("new")
    bus.topic("grown", partitions=4)
    Topic.objects.create(name="grown", partitions=2, origin="code")
    Topic.objects.create(name="left", partitions=1, origin="code")
    bus.registry.project([TopicSpec(name="stray"), TopicSpec(name="left", retention=timedelta(hours=1))])

    found = [(drift.topic, drift.text, drift.mended_by_sync) for drift in declarations.drift(bus)]

    assert found == [
        ("grown", "code says 4 partitions, the database 2", True),
        ("grown", "the database has it, Redis does not", True),
        ("left", "code declared it once and does so no longer; it can be deleted", False),
        ("left", "the database says retention for ever, Redis 1h", True),
        ("new", "code declares it, the database does not have it", True),
        ("stray", "Redis has it, neither code nor the database does", False),
    ]


def test_there_is_no_drift_after_a_sync(bus: Bus) -> None:
    bus.topic("orders", partitions=2)
    Topic.objects.create(name="alerts", partitions=1)

    declarations.sync(bus)

    assert declarations.drift(bus) == []


def test_a_publisher_gets_a_topic_back_from_the_database_when_redis_lost_it(
    settings, server: EmbeddedServer, prefix: str
) -> None:
    # given a topic that only the database knows
    settings.BUS = {"URL": server.url, "PREFIX": prefix}
    Topic.objects.create(name="wages", partitions=2)

    # when
    receipt = public.publish("wages", {"n": 1}, key="a")

    # then
    assert receipt.topic == "wages"
    assert default.get().registry.specs()["wages"].partitions == 2


def test_a_database_that_cannot_be_asked_makes_a_topic_unknown_and_nothing_worse(
    settings, server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.BUS = {"URL": server.url, "PREFIX": prefix}

    def no_table() -> None:
        raise OperationalError("no such table: jitney_topic")

    monkeypatch.setattr(rows, "every", no_table)

    with pytest.raises(UnknownTopic):
        public.publish("wages", 1)


def test_rows_are_written_although_redis_is_away(tmp_path: Path) -> None:
    bus = Bus(f"unix://{tmp_path}/nobody.sock")
    bus.topic("orders")

    with pytest.raises(BusUnavailable):
        declarations.sync(bus)

    assert Topic.objects.filter(name="orders").exists()


def test_migrating_a_test_database_reaches_no_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(declarations, "sync", lambda: calls.append("sync"))

    declarations.sync_after_migrate(using="default")

    assert calls == []


def migrate(data: Path, url: str) -> subprocess.CompletedProcess[str]:
    """`manage.py migrate` of the real project in a process of its own."""
    environment = {**os.environ, "JITNEY_DATA": str(data), "BUS_URL": url, "BUS_PREFIX": data.name}
    command = [sys.executable, "manage.py", "migrate", "-v0"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_migrate_projects_the_topics_of_code(server: EmbeddedServer, prefix: str, tmp_path: Path) -> None:
    done = migrate(tmp_path / prefix, server.url)

    assert done.returncode == 0, done.stderr
    assert Bus(server.url, prefix=prefix).registry.specs()["orders"].partitions == 8


def test_migrate_warns_and_goes_on_when_redis_is_away(tmp_path: Path) -> None:
    done = migrate(tmp_path / "data", f"unix://{tmp_path}/nobody.sock")

    assert done.returncode == 0
    assert "bus topic sync" in done.stderr
