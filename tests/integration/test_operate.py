"""Operator verbs: checked, done after the commit, audited."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from django.core.exceptions import ValidationError
from django.db import transaction

from bus.client import Bus
from bus.errors import BusUnavailable, ConfigurationError, ReadOnly, UnknownGroup, UnknownTopic
from bus.models import AuditRecord, Topic
from bus.operating import operate
from bus.streams.embedded import EmbeddedServer
from bus.values import TopicSpec

ADA = operate.Actor("admin", "ada")

pytestmark = pytest.mark.django_db(transaction=True)


def audit() -> list[tuple[str, str, str, str]]:
    """(verb, topic, group, outcome) of all records, oldest first."""
    return list(AuditRecord.objects.order_by("pk").values_list("verb", "topic", "group", "outcome"))


def test_a_created_topic_is_a_row_a_projection_and_a_record(bus: Bus) -> None:
    operate.create_topic(bus, "wages", partitions=2, retention=timedelta(days=1), notes="Ada's", actor=ADA)

    row = Topic.objects.get(name="wages")
    assert (row.origin, row.notes) == ("admin", "Ada's")
    assert bus.registry.specs() == {"wages": row.spec}
    record = AuditRecord.objects.get()
    assert (record.who, record.source, record.verb, record.outcome) == ("ada", "admin", "create topic", "ok")
    assert record.detail == {"partitions": 2, "retention": 86400.0, "notes": "Ada's"}


def test_redis_learns_of_a_topic_only_when_the_transaction_commits(bus: Bus) -> None:
    with transaction.atomic():
        operate.create_topic(bus, "wages", actor=ADA)
        before = bus.registry.specs()

    assert before == {}
    assert list(bus.registry.specs()) == ["wages"]


def test_a_transaction_that_is_rolled_back_leaves_no_topic_anywhere(bus: Bus) -> None:
    with transaction.atomic():
        operate.create_topic(bus, "wages", actor=ADA)
        transaction.set_rollback(True)

    assert bus.registry.specs() == {}
    assert not Topic.objects.exists()


def test_a_change_is_projected_and_the_record_says_from_what_to_what(bus: Bus) -> None:
    operate.create_topic(bus, "wages", partitions=2, retention=timedelta(hours=1), actor=ADA)

    operate.change_topic(bus, "wages", partitions=4, retention=None, actor=ADA)

    assert bus.registry.specs()["wages"] == TopicSpec(name="wages", partitions=4)
    record = AuditRecord.objects.first()
    assert record is not None
    assert record.detail == {"partitions": [2, 4], "retention": [3600.0, None]}


def test_a_broken_rule_changes_nothing_and_is_recorded_as_failed(bus: Bus) -> None:
    operate.create_topic(bus, "wages", partitions=4, actor=ADA)

    with pytest.raises(ValidationError, match="cannot shrink"):
        operate.change_topic(bus, "wages", partitions=2, actor=ADA)
    with pytest.raises(ValidationError, match="already exists"):
        operate.create_topic(bus, "wages", actor=ADA)

    assert bus.registry.specs()["wages"].partitions == 4
    assert [outcome for *_, outcome in audit()] == ["ok", "failed", "failed"]
    assert "already exists" in AuditRecord.objects.first().error  # type: ignore[union-attr]  # there are three


def test_a_topic_that_redis_has_with_more_partitions_is_refused_before_the_commit(bus: Bus) -> None:
    bus.registry.project([TopicSpec(name="wages", partitions=8)])

    with pytest.raises(ConfigurationError, match="8 partitions in Redis"):
        operate.create_topic(bus, "wages", partitions=2, actor=ADA)

    assert not Topic.objects.exists()


def test_nothing_is_stored_while_redis_is_away(tmp_path: Path) -> None:
    bus = Bus(f"unix://{tmp_path}/nobody.sock")

    with pytest.raises(BusUnavailable):
        operate.create_topic(bus, "wages", actor=ADA)

    assert not Topic.objects.exists()
    assert audit() == [("create topic", "wages", "", "failed")]


def test_when_redis_goes_away_at_the_commit_the_row_stays_and_the_record_tells(
    own_server: EmbeddedServer,
) -> None:
    bus = Bus(own_server.url)

    def save_and_lose_redis() -> None:
        with transaction.atomic():
            operate.create_topic(bus, "wages", actor=ADA)
            own_server.kill()

    with pytest.raises(BusUnavailable):
        save_and_lose_redis()

    assert Topic.objects.filter(name="wages").exists()
    assert audit() == [("create topic", "wages", "", "failed")]


@pytest.mark.parametrize("confirm", [None, "", "Wages"])
def test_deleting_a_topic_asks_for_its_name(bus: Bus, confirm: str | None) -> None:
    operate.create_topic(bus, "wages", actor=ADA)

    with pytest.raises(ConfigurationError, match="confirm it with its name"):
        operate.delete_topic(bus, "wages", confirm=confirm, actor=ADA)

    assert Topic.objects.exists()
    assert list(bus.registry.specs()) == ["wages"]


def test_a_deleted_topic_is_gone_from_both_places_with_all_its_keys(bus: Bus) -> None:
    operate.create_topic(bus, "wages", partitions=2, actor=ADA)
    operate.create_group(bus, "wages", "payroll", actor=ADA)
    bus.publish("wages", 1)

    operate.delete_topic(bus, "wages", confirm="wages", actor=ADA)

    assert not Topic.objects.exists()
    left = bus.client.call("KEYS", f"{bus.keys.prefix}:*")
    assert sorted(left) == [bus.keys.control.encode(), bus.keys.meta.encode()]
    assert audit()[-1] == ("delete topic", "wages", "", "ok")


def test_a_topic_that_is_in_one_place_only_can_be_deleted(bus: Bus) -> None:
    Topic.objects.create(name="row-only")
    bus.registry.project([TopicSpec(name="redis-only")])

    for name in ("row-only", "redis-only"):
        operate.delete_topic(bus, name, confirm=name, actor=ADA)

    assert not Topic.objects.exists()
    assert bus.registry.specs() == {}


def test_a_topic_that_is_nowhere_cannot_be_deleted_or_changed(bus: Bus) -> None:
    with pytest.raises(UnknownTopic):
        operate.delete_topic(bus, "nope", confirm="nope", actor=ADA)
    with pytest.raises(UnknownTopic):
        operate.change_topic(bus, "nope", partitions=2, actor=ADA)


def test_a_topic_that_code_declares_cannot_be_deleted(bus: Bus) -> None:
    bus.topic("wages")

    with pytest.raises(ConfigurationError, match="declared in code"):
        operate.delete_topic(bus, "wages", confirm="wages", actor=ADA)


def test_verbs_on_groups_are_done_and_recorded(bus: Bus) -> None:
    operate.create_topic(bus, "wages", actor=ADA)

    operate.create_group(bus, "wages", "payroll", start="latest", ordering="none", actor=ADA)
    operate.pause_group(bus, "wages", "payroll", actor=ADA)
    paused = bus.registry.groups("wages")[0].paused
    operate.resume_group(bus, "wages", "payroll", actor=ADA)
    operate.delete_group(bus, "wages", "payroll", actor=ADA)
    with pytest.raises(UnknownGroup):
        operate.pause_group(bus, "wages", "payroll", actor=ADA)

    assert paused
    assert bus.registry.groups() == []
    assert audit()[1:] == [
        ("create group", "wages", "payroll", "ok"),
        ("pause group", "wages", "payroll", "ok"),
        ("resume group", "wages", "payroll", "ok"),
        ("delete group", "wages", "payroll", "ok"),
        ("pause group", "wages", "payroll", "failed"),
    ]


def test_a_read_only_bus_refuses_every_verb(server: EmbeddedServer, prefix: str) -> None:
    Bus(server.url, prefix=prefix).registry.project([TopicSpec(name="wages")])
    bus = Bus(server.url, prefix=prefix, read_only=True)
    verbs = [
        lambda: operate.create_topic(bus, "new", actor=ADA),
        lambda: operate.delete_topic(bus, "wages", confirm="wages", actor=ADA),
        lambda: operate.create_group(bus, "wages", "payroll", actor=ADA),
        lambda: operate.pause_group(bus, "wages", "payroll", actor=ADA),
        lambda: operate.resume_group(bus, "wages", "payroll", actor=ADA),
        lambda: operate.delete_group(bus, "wages", "payroll", actor=ADA),
    ]

    for verb in verbs:
        with pytest.raises(ReadOnly):
            verb()

    assert list(bus.registry.specs()) == ["wages"]
    assert {outcome for *_, outcome in audit()} == {"failed"}
