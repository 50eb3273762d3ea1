"""What the pages cost and who may see them, on a real server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from bus import default
from bus.client import Bus
from bus.models import AuditRecord, Topic
from bus.streams.embedded import EmbeddedServer
from bus.streams.wire import Link
from bus.topics import declared
from bus.topics.declared import Declared
from tests.ui import scene

pytestmark = pytest.mark.django_db

BASE = "/admin/jitney/"
GROUP = f"{BASE}topic/named/orders/groups/inventory/"
PAGES = [
    f"{BASE}overview/",
    f"{BASE}topic/",
    f"{BASE}topic/named/orders/",
    f"{BASE}topic/named/orders/messages/",
    GROUP,
    f"{BASE}worker/",
]


@pytest.fixture(autouse=True)
def _nothing_declared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The project's own topics stay out of these tests."""
    monkeypatch.setattr(declared, "by_code", Declared())
    yield
    default.reset()


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str, settings: Any) -> Bus:
    """The default bus."""
    settings.BUS = {"URL": server.url, "PREFIX": prefix}
    return default.get()


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each write to the server."""
    sent: list[int] = []
    send = Link.send

    def counted(link: Link, packed: bytes, replies: int) -> None:
        sent.append(replies)
        send(link, packed, replies)

    monkeypatch.setattr(Link, "send", counted)
    return sent


@pytest.fixture
def sign_in(client: Client) -> Callable[..., Client]:
    """A client of a member of staff with these permissions. (`client` here is Django's, see below.)"""

    def make(*permissions: str) -> Client:
        user = User.objects.create_user("member", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client.force_login(user)
        return client

    return make


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.mark.parametrize(
    ("path", "most"),
    [("overview/", 6), ("topic/", 6), ("topic/named/topic-007/", 12), ("worker/", 6)],
)
def test_pages_over_300_topics_cost_few_round_trips_and_little_time(
    bus: Bus, admin_client: Client, round_trips: list[int], path: str, most: int
) -> None:
    scene.declare_many(bus, 300, "inventory")
    admin_client.get(f"{BASE}{path}")
    round_trips.clear()

    began = time.process_time()
    response = admin_client.get(f"{BASE}{path}", {"live": "1"})

    assert response.status_code == 200
    assert len(round_trips) <= most
    assert time.process_time() - began < 1


def test_an_unchanged_region_costs_no_bytes(bus: Bus, admin_client: Client) -> None:
    scene.declare(bus, "orders", 2, ["inventory"])
    first = admin_client.get(GROUP, {"live": "1"})

    same = admin_client.get(GROUP, {"live": "1"}, headers={"If-None-Match": first["ETag"]})
    scene.publish(bus, "orders", 1)
    other = admin_client.get(GROUP, {"live": "1"}, headers={"If-None-Match": first["ETag"]})

    assert (same.status_code, same.content) == (304, b"")
    assert other.status_code == 200
    assert b"<html" not in other.content


@pytest.mark.parametrize("path", PAGES)
def test_strangers_are_sent_to_the_login_and_staff_without_permission_away(
    bus: Bus, client: Client, sign_in: Callable[..., Client], path: str
) -> None:
    scene.declare(bus, "orders", 1, ["inventory"])

    assert client.get(path)["Location"].startswith("/admin/login/")
    assert sign_in().get(path).status_code == 403


def test_reading_messages_takes_a_permission_of_its_own(bus: Bus, sign_in: Callable[..., Client]) -> None:
    scene.declare(bus, "orders", 1, ["inventory"])
    viewer = sign_in("view_topic")

    assert [viewer.get(path).status_code for path in PAGES] == [200, 200, 200, 403, 200, 200]
    assert b"messages/" not in viewer.get(f"{BASE}topic/named/orders/").content
    viewer.logout()
    User.objects.all().delete()
    assert sign_in("view_topic", "peek_messages").get(PAGES[3]).status_code == 200


def test_pausing_takes_a_post_a_permission_and_leaves_a_record(
    bus: Bus, sign_in: Callable[..., Client]
) -> None:
    scene.declare(bus, "orders", 1, ["inventory"])
    viewer = sign_in("view_topic")
    assert viewer.post(f"{GROUP}pause/").status_code == 403
    assert viewer.get(f"{GROUP}pause/").status_code == 405
    assert b"You lack the permission" in viewer.get(GROUP).content
    assert not bus.registry.groups("orders")[0].paused

    User.objects.all().delete()
    manager = sign_in("view_topic", "manage_groups")
    assert manager.post(f"{GROUP}pause/").status_code == 302
    assert bus.registry.groups("orders")[0].paused
    assert [(one.verb, one.who) for one in AuditRecord.objects.all()] == [("pause group", "member")]


def test_what_does_not_exist_is_a_clear_404(bus: Bus, admin_client: Client) -> None:
    scene.declare(bus, "orders", 1)

    topic = admin_client.get(f"{BASE}topic/named/other/")
    group = admin_client.get(GROUP)

    assert (topic.status_code, group.status_code) == (404, 404)
    assert b"There is no topic" in topic.content
    assert b"no consumer group" in group.content


def test_names_that_sound_like_addresses_of_the_admin_have_their_pages(
    bus: Bus, admin_client: Client
) -> None:
    for name in ("add", "change", "named", "1"):
        scene.declare(bus, name, 1, ["groups"])
        assert admin_client.get(f"{BASE}topic/named/{name}/").status_code == 200
        assert admin_client.get(f"{BASE}topic/named/{name}/groups/groups/").status_code == 200


def test_the_page_of_a_topic_says_what_waits_until_it_is_due(
    bus: Bus, admin_client: Client, round_trips: list[int]
) -> None:
    scene.declare(bus, "orders", 2, ["inventory"])
    page = f"{BASE}topic/named/orders/"
    assert b"Delayed" not in admin_client.get(page).content
    round_trips.clear()
    admin_client.get(page, {"live": "1"})
    before = len(round_trips)

    for key in "abc":
        bus.publish("orders", 1, key=key, at=datetime(2040, 1, 31, 12, tzinfo=UTC))
    round_trips.clear()
    content = " ".join(admin_client.get(page, {"live": "1"}).content.decode().split())

    assert len(round_trips) == before
    assert "<dt>Delayed</dt><dd>3 " in content
    assert "next due" in content
    assert "2040" in content


def test_drift_is_shown_as_a_notice(bus: Bus, admin_client: Client) -> None:
    Topic.objects.create(name="lost", partitions=1)

    assert b"the database has it, Redis does not" in admin_client.get(f"{BASE}overview/").content


class TestTopicForms:
    def form(self, **changes: Any) -> dict[str, Any]:
        return {"name": "orders", "partitions": 4, "retention": "7d", "notes": "", **changes}

    @pytest.mark.django_db(transaction=True)
    def test_a_topic_is_added_projected_and_audited(self, bus: Bus, admin_client: Client) -> None:
        response = admin_client.post(f"{BASE}topic/add/", self.form())

        assert response.status_code == 302
        assert bus.registry.specs()["orders"].partitions == 4
        assert Topic.objects.get().retention is not None
        assert [(one.verb, one.who, one.outcome) for one in AuditRecord.objects.all()] == [
            ("create topic", "admin", "ok")
        ]

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"name": "a b"}, "is not a valid name"),
            ({"name": ".."}, "cannot be created"),
            ({"partitions": 2000}, "1 to 1,024 partitions"),
            ({"partitions": 0}, "1 to 1,024 partitions"),
            ({"retention": "soon"}, "is not a duration"),
            ({"retention": "0s"}, "longer than zero"),
        ],
    )
    def test_mistakes_are_told_beside_the_field(
        self, bus: Bus, admin_client: Client, changes: dict[str, Any], text: str
    ) -> None:
        response = admin_client.post(f"{BASE}topic/add/", self.form(**changes))

        assert response.status_code == 200
        assert text in response.content.decode()
        assert not Topic.objects.exists()

    def test_partitions_cannot_become_fewer(self, bus: Bus, admin_client: Client) -> None:
        topic = Topic.objects.create(name="orders", partitions=4)

        response = admin_client.post(f"{BASE}topic/{topic.pk}/change/", {"partitions": 2, "notes": ""})

        assert "cannot shrink" in response.content.decode()

    def test_redis_away_is_an_error_of_the_form_that_keeps_the_input(
        self, admin_client: Client, settings: Any, tmp_path: Any
    ) -> None:
        settings.BUS = {"URL": f"unix://{tmp_path}/nothing.sock"}

        response = admin_client.post(f"{BASE}topic/add/", self.form(notes="kept"))

        assert response.status_code == 200
        assert "Cannot connect to Redis" in response.content.decode()
        assert ">\nkept</textarea>" in response.content.decode()
        assert AuditRecord.objects.get().outcome == "failed"
        assert not Topic.objects.exists()

    def test_code_declared_topics_take_notes_only_and_cannot_be_deleted(
        self, bus: Bus, admin_client: Client
    ) -> None:
        bus.topic("orders", partitions=4)
        topic = Topic.objects.create(name="orders", partitions=4, origin="code")
        url = f"{BASE}topic/{topic.pk}/change/"

        assert b"Only notes can be changed here" in admin_client.get(url).content
        admin_client.post(url, {"partitions": 8, "notes": "ask Ann"})

        topic.refresh_from_db()
        assert (topic.partitions, topic.notes) == (4, "ask Ann")
        assert admin_client.post(f"{BASE}topic/{topic.pk}/delete/", {"confirm": "orders"}).status_code == 403

    @pytest.mark.django_db(transaction=True)
    def test_deleting_takes_the_typed_name(self, bus: Bus, admin_client: Client) -> None:
        scene.declare(bus, "orders", 2, ["inventory"])
        topic = Topic.objects.create(name="orders", partitions=2)
        url = f"{BASE}topic/{topic.pk}/delete/"

        wrong = admin_client.post(url, {"confirm": "order"})
        assert b"confirm it with its name" in wrong.content
        assert Topic.objects.exists()

        assert admin_client.post(url, {"confirm": "orders"}).status_code == 302
        assert not Topic.objects.exists()
        assert "orders" not in bus.registry.specs()


def test_the_audit_is_read_only(bus: Bus, admin_client: Client) -> None:
    record = AuditRecord.objects.create(source="cli", verb="pause group", topic="orders")

    assert b"pause group" in admin_client.get(f"{BASE}auditrecord/").content
    assert admin_client.get(f"{BASE}auditrecord/{record.pk}/change/").status_code == 200
    assert admin_client.post(f"{BASE}auditrecord/{record.pk}/delete/", {"post": "yes"}).status_code == 403
    assert admin_client.get(f"{BASE}auditrecord/add/").status_code == 403


def test_the_list_of_apps_leads_to_the_overview(bus: Bus, admin_client: Client) -> None:
    assert b"/admin/jitney/overview/" in admin_client.get("/admin/").content
    assert b"Open the overview" in admin_client.get(BASE).content
