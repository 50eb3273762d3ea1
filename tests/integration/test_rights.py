"""Who may see and do what on the pages: every permission against every page and verb; foreign text there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from bus import default
from bus.cli import tree
from bus.cli.audited import Audited
from bus.cli.direct import Direct
from bus.cli.session import Session
from bus.client import Bus
from bus.models import AuditRecord
from bus.operating import deadletters
from bus.streams.embedded import EmbeddedServer
from bus.topics import declared
from bus.topics.declared import Declared
from tests.ui import scene

pytestmark = pytest.mark.django_db

BASE = "/admin/jitney/"
GROUP = f"{BASE}topic/named/orders/groups/inventory/"
DEAD = f"{GROUP}dead/"

#: What no page may show to who may not read messages, of key, value, header, reason and error of a letter.
SECRETS = ("key-4711", "value-4711", "header-4711", "reason-4711", "error-4711")
#: Turns the text behind it around; draws nothing; a control character.
EVIL = "\u202e\u200b\x1b\u2066"

LOOK = {
    "overview": f"{BASE}overview/",
    "topics": f"{BASE}topic/",
    "topic": f"{BASE}topic/named/orders/",
    "group": GROUP,
    "dead letters": DEAD,
    "workers": f"{BASE}worker/",
}
PEEK = {
    "messages": f"{BASE}topic/named/orders/messages/",
    "letters by key": f"{DEAD}?key=key-4711",
    "letters by reason": f"{DEAD}?reason=reason-4711",
}
#: Address → the permission that it takes beside that of looking.
VERBS = {
    f"{GROUP}pause/": "manage_groups",
    f"{GROUP}resume/": "manage_groups",
    f"{DEAD}retry/?all=1": "retry_dead_letters",
    f"{DEAD}discard/?all=1": "discard_dead_letters",
}
#: Commands that show what is in Redis.
COMMANDS = (
    "topics", "topic describe orders", "groups", "group describe orders inventory", "workers", "doctor",
    "group describe orders other", "pending list orders inventory", "dead list orders inventory",
    "dead retry orders inventory --all", "delayed list orders", "tail orders", "topic delete orders",
)  # fmt: skip
IMPLY_LOOKING = (
    "view_topic", "change_topic", "peek_messages", "manage_groups", "retry_dead_letters",
    "discard_dead_letters",
)  # fmt: skip
OTHERS = ("add_topic", "delete_topic", "view_auditrecord")


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    """The default bus, with a group that has dead letters full of secrets and of characters that deceive."""
    monkeypatch.setattr(declared, "by_code", Declared())
    settings.BUS = {"URL": server.url, "PREFIX": prefix}
    bus = default.get()
    scene.declare(bus, "orders", 1, ["inventory"])
    keys = bus.keys.partition("orders", 0)
    for _ in range(3):
        receipt = bus.publish(
            "orders", {"a": f"value-4711{EVIL}"}, key=f"key-4711{EVIL}", headers={"h": f"header-4711{EVIL}"}
        )
        letter = {
            "id": receipt.id, "reason": f"ValueError: reason-4711{EVIL}", "error": f"error-4711{EVIL}",
            "attempts": 5, "first": 1_700_000_000_000, "last": 1_700_000_100_000,
            "v": f'{{"a":"value-4711{EVIL[:2]}"}}', "k": f"key-4711{EVIL}",
        }  # fmt: skip
        bus.client.call(
            "XADD", keys.dead("inventory"), "*", *(part for pair in letter.items() for part in pair)
        )
    scene.drain(bus, "orders", "inventory")
    yield bus
    default.reset()


def sign_in(*permissions: str) -> Client:
    user = User.objects.create_user("member", is_staff=True)
    found = Permission.objects.filter(codename__in=permissions, content_type__app_label="jitney")
    assert len(found) == len(permissions)
    user.user_permissions.set(found)
    client = Client()
    client.force_login(user)
    return client


@pytest.mark.parametrize("permission", [*IMPLY_LOOKING, *OTHERS, ""])
def test_every_page_and_verb_against_every_permission(bus: Bus, permission: str) -> None:
    client = sign_in(*([permission] if permission else []))
    looks, peeks = permission in IMPLY_LOOKING, permission == "peek_messages"

    for name, path in LOOK.items():
        for live in ("", "?live=1"):
            response = client.get(path + live)
            assert response.status_code == (200 if looks else 403), name
            if not peeks:
                shown = response.content.decode()
                assert not [secret for secret in SECRETS if secret in shown], name
    for name, path in PEEK.items():
        response = client.get(path)
        assert response.status_code == (200 if peeks else 403), name
    for path, needed in VERBS.items():
        response = client.post(path, {"until": "1"} if path.startswith(DEAD) else {})
        assert response.status_code == (302 if permission == needed else 403), path
    assert deadletters.count(bus, "orders", "inventory").kept == 3


@pytest.mark.parametrize("permission", IMPLY_LOOKING)
def test_who_may_look_finds_the_pages_on_the_index(bus: Bus, permission: str) -> None:
    index = sign_in(permission).get("/admin/").content.decode()

    for name in ("overview", "topics", "workers"):
        assert f'href="{LOOK[name]}"' in index


@pytest.mark.parametrize("field", ["key=key-4711", "reason=reason-4711"])
def test_verbs_by_what_messages_hold_take_the_permission_to_read_them(bus: Bus, field: str) -> None:
    clerk = sign_in("retry_dead_letters", "discard_dead_letters")

    for verb in ("retry", "discard"):
        assert clerk.get(f"{DEAD}{verb}/?{field}").status_code == 403
        assert clerk.post(f"{DEAD}{verb}/?{field}").status_code == 403
        assert clerk.get(f"{DEAD}{verb}/?partition=0").status_code == 200


def test_reasons_in_the_audit_are_shown_to_who_may_read_messages(bus: Bus) -> None:
    letters = [{"letter": "0/1-0", "message": "1-0", "reason": f"reason-4711{EVIL}", "outcome": "discarded"}]
    record = AuditRecord.objects.create(
        source="cli", verb="discard dead letters", topic="orders", detail={"letters": letters}
    )
    path = f"{BASE}auditrecord/{record.pk}/change/"
    client = sign_in("view_auditrecord", "peek_messages")
    full = client.get(path).content.decode()
    User.objects.all().delete()
    cut = sign_in("view_auditrecord").get(path).content.decode()

    assert "reason-4711\\u202e" in full
    assert "reason-4711" not in cut
    assert "0/1-0" in cut
    assert not set(EVIL) & set(full + cut)


def test_characters_that_deceive_are_made_visible_on_every_page(bus: Bus, admin_client: Client) -> None:
    for name, path in {**LOOK, **PEEK}.items():
        for live in ("", "&live=1" if "?" in path else "?live=1"):
            shown = admin_client.get(path + live).content.decode()
            assert not set(EVIL) & set(shown), name
    letters = admin_client.get(DEAD).content.decode()
    for secret in ("key-4711", "reason-4711", "error-4711", "value-4711"):
        assert f"{secret}\\u202e\\u200b" in letters


def test_an_error_on_a_page_shows_foreign_text_visibly(bus: Bus, admin_client: Client) -> None:
    for live in ("", "?live=1"):
        response = admin_client.get(f"{BASE}topic/named/a%E2%80%AEb/{live}")

        assert response.status_code == 404
        assert "\u202e" not in response.content.decode()
        assert "a\\u202eb" in response.content.decode()


def test_who_may_not_read_messages_finds_no_audit_record_by_its_reasons(bus: Bus) -> None:
    letters = [{"letter": "0/1-0", "message": "1-0", "reason": "reason-4711", "outcome": "discarded"}]
    AuditRecord.objects.create(
        source="cli", verb="discard dead letters", topic="orders", detail={"letters": letters}
    )
    path = f"{BASE}auditrecord/"
    clerk = sign_in("view_auditrecord")

    for query in ("detail__icontains=reason-4711", "detail__icontains=other", "detail__letters__0__reason=x"):
        assert clerk.get(f"{path}?{query}").status_code == 400, query
    assert "discard dead letters" in clerk.get(f"{path}?topic=orders").content.decode()
    User.objects.all().delete()
    reader = sign_in("view_auditrecord", "peek_messages")
    assert "discard dead letters" in reader.get(f"{path}?detail__icontains=reason-4711").content.decode()


def test_what_strangers_wrote_into_the_tables_is_made_visible_on_every_page_and_by_every_command(
    bus: Bus, admin_client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    call, name = bus.client.call, f"stranger{EVIL}"
    worker = {"beat": 1, "host": name, "groups": [name], "serves": [f"orders/{name}", "orders/inventory"]}
    call("HSET", bus.keys.workers, "stranger", json.dumps(worker), name, name)
    call("HSET", bus.keys.topics, name, name, "junk", name)
    call("HSET", bus.keys.groups, name, name, "orders/other", json.dumps({"ordering": name, "start": name}))
    keys = bus.keys.partition("orders", 0)
    call("XREADGROUP", "GROUP", "inventory", name, "STREAMS", keys.stream, ">")
    call("SET", keys.lease("inventory", "0"), f"{name}:1")
    call("HSET", keys.state("inventory"), "ordering", name, name, name)
    seen = ""

    for path in (*LOOK.values(), LOOK["group"].replace("inventory", "other")):
        for live in ("", "?live=1"):
            shown = admin_client.get(path + live).content.decode()
            assert not set(EVIL) & set(shown), path
            seen += shown
    assert "stranger\\u202e\\u200b" in seen

    bus.publish("orders", {f"a{EVIL}": name}, key=name, headers={name: name}, delay=3600)
    for command in COMMANDS:
        for operator, option in product((Audited, Direct), ((), ("--json",))):
            tree.run(Session(lambda: bus, operator), (*command.split(), *option), "bus")
            told = "".join(capsys.readouterr())
            assert told, command
            assert not set(EVIL) & set(told), command
