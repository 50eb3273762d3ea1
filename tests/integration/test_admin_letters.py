"""What a request to the pages of dead letters acts on: what was counted and confirmed, or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import Client

from bus import default
from bus.client import Bus
from bus.models import AuditRecord
from bus.operating import deadletters
from bus.streams.embedded import EmbeddedServer
from bus.topics import declared
from bus.topics.declared import Declared
from tests.ui import scene

pytestmark = pytest.mark.django_db

GROUP = "/admin/jitney/topic/named/orders/groups/inventory/"
DEAD = f"{GROUP}dead/"
VERBS = ("retry", "discard")

#: Queries that do not say which letters are meant, and what the refusal says.
UNCLEAR = [
    ("", "Say which"),
    ("idd=0/1-1", "'idd' is not known"),
    ("ID=0/1-1", "'ID' is not known"),
    ("page=-1", "'page' is not known"),
    ("limit=-1", "'limit' is not known"),
    ("all=1&idd=0/1-1", "'idd' is not known"),
    ("partition=0&before=0/1-1", "'before' is not known"),
    ("all=", "'all' is empty"),
    ("all=0", "'all' can be 1 only"),
    ("all=1&partition=0", "Say which"),
    ("id=0/1-1&partition=0", "Say which"),
    ("id=", "'id' is empty"),
    ("id=1", "no dead letter's id"),
    ("id=0/1-1&id=0/2-1", "'id' is given 2 times"),
    ("id=7/1-1", "has the partitions 0 to 1"),
    ("id=0/" + "9" * 5000, "no dead letter's id"),
    ("partition=", "'partition' is empty"),
    ("partition=-1", "'partition': '-1' is no partition"),
    ("partition=1e0", "is no partition"),
    ("partition=7", "has the partitions 0 to 1"),
    ("partition=0&partition=1", "'partition' is given 2 times"),
    ("key=", "'key' is empty"),
    ("reason=", "'reason' is empty"),
    ("reason=%20", "'reason' is empty"),
    ("since=", "'since' is empty"),
    ("since=-5d", "'since': '"),
    ("since=soon", "'since': '"),
    ("since=0s", "'since': '"),
    ("since=999999d", "'since': '"),
    ("since=" + "9" * 5000 + "d", "'since': '999"),
]
#: Queries that the list cannot search by: it needs none, and has pages.
UNSEARCHABLE = [
    *((query, why) for query, why in UNCLEAR if why != "Say which" and not re.search("all|before", query)),
    ("all=1", "'all' is not known"),
    ("before=", "'before' is empty"),
    ("before=1", "no dead letter's id"),
]
#: Bounds that no confirmation page gives.
UNBOUNDED: list[tuple[dict[str, Any], str]] = [
    ({}, "'until', the moment up to which they were counted, is missing"),
    ({"until": ""}, "'until' is empty"),
    ({"until": "x"}, "is not a moment"),
    ({"until": "-1"}, "is not a moment"),
    ({"until": "1e12"}, "is not a moment"),
    ({"until": "9" * 15}, "later than the clock of the server"),
    ({"until": "9" * 40}, "is not a moment"),
    ({"until": ["1", "2"]}, "'until' is given 2 times"),
]


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    """The default bus, with a topic of two partitions; what the project declares stays out."""
    monkeypatch.setattr(declared, "by_code", Declared())
    settings.BUS = {"URL": server.url, "PREFIX": prefix}
    bus = default.get()
    scene.declare(bus, "orders", 2, ["inventory"])
    yield bus
    default.reset()


@pytest.fixture
def client() -> Client:
    """Django's, which admin_client is made of."""
    return Client()


def bury(bus: Bus, count: int = 3, died: str = "*", partition: int = 0) -> list[str]:
    """Dead letters in one partition; their ids in it."""
    key = bus.keys.partition("orders", partition).dead("inventory")
    fields = ("id", "1-1", "reason", "ValueError: x", "error", "", "attempts", "5", "v", "1", "k", "a")
    return [bus.client.call("XADD", key, died, *fields).decode() for _ in range(count)]


def left(bus: Bus) -> int:
    return deadletters.count(bus, "orders", "inventory").kept


def form_of(page: HttpResponse) -> tuple[str, dict[str, str]]:
    """The query and the fields with which a confirmation page comes back."""
    content = page.content.decode()
    action = re.search(r'<form method="post" action="(\?[^"]*)" class="jt-confirm">', content)
    until = re.search(r'name="until" value="(\d+)"', content)
    assert action is not None
    assert until is not None
    return action[1].replace("&amp;", "&"), {"until": until[1]}


def text_of(response: HttpResponse) -> str:
    return response.content.decode().replace("&#x27;", "'")


@pytest.mark.parametrize(("query", "why"), UNCLEAR, ids=[query[:24] for query, _ in UNCLEAR])
def test_an_action_that_does_not_say_which_letters_is_refused_with_why(
    bus: Bus, admin_client: Client, query: str, why: str
) -> None:
    bury(bus)
    _, form = form_of(admin_client.get(f"{DEAD}retry/?all=1"))

    for verb in VERBS:
        asked = admin_client.get(f"{DEAD}{verb}/?{query}")
        done = admin_client.post(f"{DEAD}{verb}/?{query}", form)

        for response in (asked, done):
            assert response.status_code == 400
            assert why in text_of(response)
            assert len(response.content) < 20_000
    assert left(bus) == 3
    assert not AuditRecord.objects.exists()


@pytest.mark.parametrize(("form", "why"), UNBOUNDED, ids=[str(form)[:24] for form, _ in UNBOUNDED])
def test_an_action_without_the_bound_of_its_confirmation_is_refused(
    bus: Bus, admin_client: Client, form: dict[str, Any], why: str
) -> None:
    letters = bury(bus)

    for verb in VERBS:
        for query in ("all=1", f"id=0/{letters[0]}", "key=a"):
            response = admin_client.post(f"{DEAD}{verb}/?{query}", form)
            assert response.status_code == 400
            assert why in text_of(response)
    assert left(bus) == 3
    assert not AuditRecord.objects.exists()


def test_a_filter_in_the_form_instead_of_the_address_is_refused(bus: Bus, admin_client: Client) -> None:
    bury(bus)
    query, form = form_of(admin_client.get(f"{DEAD}discard/?all=1"))

    response = admin_client.post(f"{DEAD}discard/{query}", {**form, "partition": "1"})

    assert (response.status_code, left(bus)) == (400, 3)
    assert "'partition' is not known here" in text_of(response)


@pytest.mark.parametrize("query", ["all=1", "partition=0", "key=a", "reason=VALUE", "since=1h"])
def test_what_was_counted_is_done_once_and_what_died_since_stays(
    bus: Bus, admin_client: Client, query: str
) -> None:
    bury(bus)
    page = admin_client.get(f"{DEAD}discard/?{query}")
    assert "Discard 3 dead letters?" in text_of(page)
    address, form = form_of(page)
    later = f"{int(form['until']) + 1}-0"
    bury(bus, 1, died=later)

    first = admin_client.post(f"{DEAD}discard/{address}", form, follow=True)
    again = admin_client.post(f"{DEAD}discard/{address}", form, follow=True)

    assert "3 dead letters are discarded" in text_of(first)
    assert "There was nothing to do" in text_of(again)
    [stays] = deadletters.find(bus, "orders", "inventory")
    assert stays.place.id == later


def test_the_same_letter_confirmed_twice_is_discarded_once(bus: Bus, admin_client: Client) -> None:
    letters = bury(bus, 2)
    address, form = form_of(admin_client.get(f"{DEAD}discard/?id={quote(f'0/{letters[0]}', safe='')}"))

    first = admin_client.post(f"{DEAD}discard/{address}", form, follow=True)
    again = admin_client.post(f"{DEAD}discard/{address}", form, follow=True)

    assert "1 dead letter is discarded" in text_of(first)
    assert "1 were gone already" in text_of(again)
    assert left(bus) == 1


def test_a_retry_confirmed_twice_gives_each_message_back_once(bus: Bus, admin_client: Client) -> None:
    bury(bus)  # their originals are gone, so that a retry adds a copy to the topic
    stream = bus.keys.partition("orders", 0).stream
    address, form = form_of(admin_client.get(f"{DEAD}retry/?all=1"))

    for _ in range(2):
        assert admin_client.post(f"{DEAD}retry/{address}", form).status_code == 302

    assert bus.client.call("XLEN", stream) == 3
    assert left(bus) == 0


def test_a_duration_is_a_moment_from_its_confirmation_on(bus: Bus, admin_client: Client) -> None:
    bury(bus)
    address, form = form_of(admin_client.get(f"{DEAD}retry/?since=2h"))
    assert re.fullmatch(r"\?since=\d{4}-\d\d-\d\dT[\d%A.]+%2B00%3A00", address)

    moved = admin_client.post(f"{DEAD}retry/?since=2h", form)

    assert (moved.status_code, left(bus)) == (400, 3)


@pytest.mark.parametrize(("query", "why"), UNSEARCHABLE, ids=[query[:24] for query, _ in UNSEARCHABLE])
def test_the_list_says_what_it_cannot_search_by_and_lists_nothing(
    bus: Bus, admin_client: Client, query: str, why: str
) -> None:
    [letter, *_] = bury(bus)

    page = admin_client.get(f"{DEAD}?{query}")
    region = admin_client.get(f"{DEAD}?{query}&live=1")

    assert letter in text_of(admin_client.get(DEAD))
    for response in (page, region):
        assert response.status_code == 400
        assert why in text_of(response)
        assert letter not in text_of(response)
        assert "all that match" not in text_of(response)


def test_the_search_form_leaves_out_its_empty_fields(bus: Bus, admin_client: Client) -> None:
    fields = {"search": "1", "reason": "", "key": "", "partition": " ", "since": ""}

    assert admin_client.get(DEAD, fields)["Location"] == DEAD
    assert admin_client.get(DEAD, {**fields, "partition": "1"})["Location"] == f"{DEAD}?partition=1"
    wrong = admin_client.get(DEAD, {**fields, "partitoin": "1"}, follow=True)
    assert (wrong.status_code, "'partitoin' is not known" in text_of(wrong)) == (400, True)


def test_a_list_that_is_not_searched_leads_to_all_and_another_to_what_matches(
    bus: Bus, admin_client: Client
) -> None:
    bury(bus, 1)
    bury(bus, 1, partition=1)

    newest = next(deadletters.find(bus, "orders", "inventory", newest_first=True)).place
    for query, count in (
        ("", 2), (f"before={newest}", 2), ("partition=1", 1), ("since=1h&key=a", 2), (f"id={newest}", 1),
    ):  # fmt: skip
        page = text_of(admin_client.get(f"{DEAD}?{query}"))
        links = re.findall(r'href="([^"]*/discard/\?[^"]*)">Discard all', page)
        assert len(links) == 1
        plan = admin_client.get(links[0].replace("&amp;", "&"))
        assert f"Discard {count} dead letter" in text_of(plan)


def test_who_may_not_read_messages_may_not_search_by_what_they_hold_in_any_spelling(
    bus: Bus, client: Client
) -> None:
    user = User.objects.create_user("clerk", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_topic", "retry_dead_letters"]))
    client.force_login(user)

    for query in ("key=a", "reason=a", "key=a&key=", "reason="):
        assert client.get(f"{DEAD}?{query}").status_code == 403
        assert client.post(f"{DEAD}retry/?{query}", {"until": "1"}).status_code == 403
    assert client.get(f"{DEAD}?partition=0").status_code == 200


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_verb_on_a_whole_group_refuses_to_be_narrowed(bus: Bus, admin_client: Client, verb: str) -> None:
    if verb == "resume":
        admin_client.post(f"{GROUP}pause/")
    before = bus.registry.groups("orders")[0].paused

    narrowed = admin_client.post(f"{GROUP}{verb}/?partition=1")
    in_form = admin_client.post(f"{GROUP}{verb}/", {"partition": "1"})

    for response in (narrowed, in_form):
        assert response.status_code == 400
        assert "'partition' is not known here. What can be given: none." in text_of(response)
    assert bus.registry.groups("orders")[0].paused is before
