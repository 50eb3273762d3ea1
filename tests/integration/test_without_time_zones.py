"""USE_TZ=False: the database gives moments without a zone. What is shown of them is right all the same."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections, transaction
from django.test import Client
from django.utils import timezone

import bus as jitney
from admin_ui.data import queries
from bus import default
from bus.cli import tree
from bus.cli.audited import Audited
from bus.cli.session import Session
from bus.client import Bus
from bus.errors import InvalidMessage
from bus.operating import operate
from bus.topics import declared
from bus.topics.declared import Declared
from bus.topics.registry import GroupSpec
from bus.transactions import forgetting, marks, outbox
from bus.values import TopicSpec
from tests.integration.places import GROUP, TOPIC

_TOPIC = f"topic/named/{TOPIC}/"
_GROUP = f"{_TOPIC}groups/{GROUP}/"
PAGES = [
    "overview/",
    "topic/",
    "worker/",
    "auditrecord/",
    _TOPIC,
    f"{_TOPIC}messages/",
    _GROUP,
    f"{_GROUP}dead/",
]


@pytest.fixture
def bus(server: Any, database: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    settings.TIME_ZONE = "Asia/Tokyo"  # nine hours from UTC: a mistake is seen
    settings.USE_TZ = False
    connections.close_all()
    settings.BUS = {"URL": server.url, "PREFIX": f"t{uuid.uuid4().hex[:10]}"}
    monkeypatch.setattr(declared, "by_code", Declared())
    bus = default.get()
    bus.registry.project([TopicSpec(name=TOPIC)])
    bus.registry.declare_groups([GroupSpec(topic=TOPIC, name=GROUP)])
    with transaction.atomic():
        jitney.publish_in_transaction(TOPIC, 1)
    yield bus
    default.reset()


def test_the_age_of_the_outbox_is_right(bus: Bus, capsys: pytest.CaptureFixture[str]) -> None:
    oldest = outbox.backlog(bus, "default").oldest
    (shard,) = outbox.backlogs(bus, "default")
    assert oldest is not None
    assert shard.oldest == oldest
    assert timedelta(0) <= datetime.now(UTC) - oldest < timedelta(minutes=5)

    assert tree.run(Session(lambda: bus, Audited), ["outbox", "status"], "bus") == 0
    assert "1 message in the outbox, the oldest" in capsys.readouterr().err
    assert tree.run(Session(lambda: bus, Audited), ["outbox", "status", "--json"], "bus") == 0
    assert datetime.fromisoformat(json.loads(capsys.readouterr().out)["oldest"]) == oldest

    row = queries.outbox(bus)
    assert row is not None
    assert row.age < timedelta(minutes=5)


def test_upkeep_and_verbs_work(bus: Bus) -> None:
    operate.pause_group(bus, TOPIC, GROUP, actor=operate.Actor("cli", "me"))
    assert outbox.Relay(bus, "default").run() == 1
    bus.client.call("SET", bus.keys.partition(TOPIC, 0).mark(GROUP), "1-0")
    assert marks.copy(bus) == 1
    assert forgetting.forget(bus, "default") == 0


def test_every_page_is_shown(bus: Bus) -> None:
    keys = bus.keys.partition(TOPIC, 0)
    bus.client.call(
        "XADD", keys.dead(GROUP), "*", "id", "1-1", "reason", "no", "first", 1, "last", 2, "v", "1"
    )
    bus.publish(TOPIC, 1)
    operate.pause_group(bus, TOPIC, GROUP, actor=operate.Actor("cli", "me"))
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    for path in PAGES:
        assert client.get(f"/admin/jitney/{path}").status_code == 200, path


def test_what_the_error_of_a_naive_time_advises_works_here(bus: Bus) -> None:
    with pytest.raises(InvalidMessage, match=r"such as datetime\.now\(UTC\) \+ timedelta\(hours=1\)"):
        bus.publish(TOPIC, 1, at=timezone.now())  # naive in such a project

    assert bus.publish(TOPIC, 1, at=datetime.now(UTC) + timedelta(hours=1)).id.startswith("d")
