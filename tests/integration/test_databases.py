"""Which databases have a table, and the distinct places in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections

from bus import checks, databases
from bus.databases import LOOK_SECONDS, Databases, distinct
from bus.models import InboxRow, OutboxRow, OutboxShard
from bus.safety.complaints import Complaints
from config.database import database as database_of


@pytest.fixture
def second(database: str, tmp_path: Path) -> Iterator[str]:
    """Another alias, with an empty database."""
    directory = tmp_path / "second"
    directory.mkdir()
    connections.settings["second"] = connections.configure_settings({"default": database_of("", directory)})[
        "default"
    ]
    yield "second"
    connections["second"].close()
    del connections["second"]
    del connections.settings["second"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_database_is_found_when_it_is_migrated(second: str) -> None:
    now = [0.0]
    found = Databases(OutboxRow, clock=lambda: now[0])
    assert found.aliases() == ["default"]
    call_command("migrate", "jitney", database=second, verbosity=0)
    assert found.aliases() == ["default"]  # it does not look all the time
    now[0] += LOOK_SECONDS
    assert found.aliases() == ["default", second]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_database_that_cannot_be_asked_is_left_out_and_asked_again(
    second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    found = Databases(OutboxRow, clock=lambda: now[0])
    call_command("migrate", "jitney", database=second, verbosity=0)
    connections[second].close()
    good = connections.settings[second]["NAME"]
    monkeypatch.setitem(connections[second].settings_dict, "NAME", "/nowhere/at/all")
    assert found.aliases() == ["default"]
    monkeypatch.setitem(connections[second].settings_dict, "NAME", good)
    now[0] += LOOK_SECONDS / 10
    assert found.aliases() == ["default", second]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_database_that_cannot_be_asked_is_told_of_once_a_minute_whoever_asks(
    second: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(
        databases, "complaints", Complaints(logging.getLogger("bus.databases"), clock=lambda: now[0])
    )
    outboxes, inboxes = (Databases(model, clock=lambda: now[0]) for model in (OutboxRow, InboxRow))
    monkeypatch.setitem(connections[second].settings_dict, "NAME", "/nowhere/at/all")
    for _ in range(12):  # two minutes; each asks every 6 s
        now[0] += LOOK_SECONDS / 6
        assert outboxes.aliases() == inboxes.aliases() == ["default"]
    assert [record.args[0] for record in caplog.records if record.args] == [second, second]


def test_distinct_places_are_found_in_order_by_one_query_each(
    database: str, django_assert_num_queries: Any
) -> None:
    rows = [
        InboxRow(group=group, topic="orders", partition=partition, era="e", ms=ms, seq=0)
        for group in ("b", "a")
        for partition in (2, 0)
        for ms in range(50)
    ]
    InboxRow.objects.bulk_create(rows)
    with django_assert_num_queries(3 + 2 * (2 + 3)):
        found = list(distinct(InboxRow.objects.all(), "group", "topic", "partition"))
    assert found == [("a", "orders", 0), ("a", "orders", 2), ("b", "orders", 0), ("b", "orders", 2)]
    assert list(distinct(OutboxShard.objects.all(), "prefix", "topic")) == []


@pytest.mark.django_db(transaction=True)
def test_nothing_is_said_of_the_databases_that_the_tests_run_on_though_they_are_asked(database: str) -> None:
    assert checks.check_vendors(databases=["default"]) == [], database
