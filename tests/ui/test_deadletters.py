"""Dead letters in a browser: looked at, retried and discarded, one and all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from playwright.sync_api import Browser, Page, expect

from bus.client import Bus
from bus.models import AuditRecord
from bus.operating import deadletters
from tests.ui import scene
from tests.ui.conftest import sign_in

Open = Callable[[str], Page]

GROUP = "topic/named/orders/groups/inventory/"
DEAD = f"{GROUP}dead/"


def bury(bus: Bus, count: int = 3, **fields: Any) -> None:
    """Dead letters whose originals are kept."""
    scene.declare(bus, "orders", 1, ["inventory"])
    keys = bus.keys.partition("orders", 0)
    for n in range(count):
        receipt = bus.publish("orders", {"n": n}, key=f"k{n}", headers={"tenant": "de"})
        letter = {"id": receipt.id, "reason": f"ValueError: no {n}", "error": f"Traceback <b>{n}</b>",
                  "attempts": 5, "first": 1_700_000_000_000, "last": 1_700_000_100_000, "v": f'{{"n":{n}}}',
                  "k": f"k{n}", **fields}  # fmt: skip
        bus.client.call(
            "XADD", keys.dead("inventory"), "*", *(part for pair in letter.items() for part in pair)
        )
    scene.drain(bus, "orders", "inventory")


def left(bus: Bus) -> int:
    return deadletters.count(bus, "orders", "inventory").kept


def test_letters_are_shown_with_reason_attempts_error_and_value(
    bus: Bus, open_page: Open, complaints: list[str]
) -> None:
    bury(bus)

    page = open_page(GROUP)
    page.get_by_role("link", name="Dead letters", exact=True).click()

    rows = page.locator(".jt-region tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("ValueError: no 2")
    expect(rows.first).to_contain_text("k2")
    rows.first.locator("summary").click()
    expect(rows.first.get_by_label("Error")).to_have_text("Traceback <b>2</b>")
    expect(rows.first.get_by_label("Value")).to_contain_text('"n": 2')
    assert not complaints


def test_a_value_that_nobody_can_decode_harms_nobody(
    bus: Bus, open_page: Open, complaints: list[str]
) -> None:
    bury(bus, 1, v=b"<script>alert(1)</script>\xff", reason="<img src=x onerror=alert(1)>")

    page = open_page(DEAD)

    page.locator("summary").click()
    expect(page.get_by_label("Value")).to_contain_text("<script>alert(1)</script>\\xff")
    expect(page.locator("summary")).to_have_text("<img src=x onerror=alert(1)>")
    assert not complaints


def test_one_letter_is_retried_after_a_confirmation_and_only_that(
    bus: Bus, open_page: Open, complaints: list[str]
) -> None:
    bury(bus)
    page = open_page(DEAD)

    page.locator("tr", has_text="no 1").get_by_role("link", name="Retry").click()
    expect(page.get_by_role("heading", name="Retry 1 dead letter?")).to_be_visible()
    assert left(bus) == 3
    page.get_by_role("button", name="Retry 1 dead letter").click()

    expect(page.locator(".messagelist")).to_contain_text("1 dead letter is given back")
    expect(page.locator(".jt-region tbody tr")).to_have_count(2)
    assert bus.client.call("XPENDING", bus.keys.partition("orders", 0).stream, "inventory")[0] == 1
    record = AuditRecord.objects.get()
    assert (record.who, record.verb, record.outcome) == ("operator", "retry dead letters", "ok")
    assert not complaints


def test_all_that_match_are_discarded_and_the_confirmation_names_how_many(
    bus: Bus, open_page: Open, complaints: list[str]
) -> None:
    bury(bus, 12)
    page = open_page(DEAD)

    page.get_by_role("searchbox", name="Text in the reason").fill("no 1")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".jt-region tbody tr")).to_have_count(3)
    page.get_by_role("link", name="Discard all that match").click()
    page.get_by_role("button", name="Discard 3 dead letters").click()
    expect(page.locator(".messagelist")).to_contain_text("3 dead letters are discarded")
    assert left(bus) == 9

    page.get_by_role("link", name="Discard all", exact=True).click()
    page.get_by_role("button", name="Discard 9 dead letters").click()
    expect(page.get_by_role("heading", name="No dead letters")).to_be_visible()
    assert left(bus) == 0
    assert not complaints


def test_what_dies_after_the_confirmation_page_is_left_alone(bus: Bus, open_page: Open) -> None:
    bury(bus, 2)
    page = open_page(f"{DEAD}discard/?all=1")
    expect(page.get_by_role("heading", name="Discard 2 dead letters?")).to_be_visible()
    bury(bus, 1)

    page.get_by_role("button", name="Discard 2 dead letters").click()

    expect(page.locator(".messagelist")).to_contain_text("2 dead letters are discarded")
    assert left(bus) == 1


def test_many_letters_are_paged_and_dropped_ones_are_counted(bus: Bus, open_page: Open) -> None:
    bury(bus, 60)
    bus.client.call("HSET", bus.keys.partition("orders", 0).state("inventory"), "dead_dropped", 7)
    page = open_page(DEAD)

    expect(page.locator(".jt-region tbody tr")).to_have_count(50)
    expect(page.locator(".jt-region")).to_contain_text("7 older dead letters beyond DEAD_LIMIT")
    page.get_by_role("link", name="Older").click()
    expect(page.locator(".jt-region tbody tr")).to_have_count(10)
    page = open_page(GROUP)
    expect(page.locator(".jt-tiles")).to_contain_text("Dropped")


@pytest.mark.parametrize("allowed", [(), ("retry_dead_letters",), ("discard_dead_letters",)])
def test_verbs_need_their_permission(
    bus: Bus, browser: Browser, live_server: Any, transactional_db: None, allowed: tuple[str, ...]
) -> None:
    bury(bus, 1)
    user = User.objects.create_user("clerk", password="secret", is_staff=True)
    names = ("view_topic", *allowed)
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    context = browser.new_context(base_url=live_server.url)
    sign_in(context, user, live_server.url)
    page = context.new_page()

    page.goto(f"/admin/jitney/{DEAD}")
    page.locator("summary").click()

    expect(page.locator(".jt-region")).to_contain_text("You lack the permission to read messages.")
    expect(page.get_by_role("link", name="Retry", exact=True)).to_have_count(
        int("retry_dead_letters" in allowed)
    )
    expect(page.get_by_role("link", name="Discard", exact=True)).to_have_count(
        int("discard_dead_letters" in allowed)
    )
    for verb in ("retry", "discard"):
        response = page.goto(f"/admin/jitney/{DEAD}{verb}/?all=1")
        assert response is not None
        assert response.status == (200 if f"{verb}_dead_letters" in allowed else 403)
    context.close()


def test_a_read_only_project_offers_nothing_and_refuses(bus: Bus, open_page: Open, settings: Any) -> None:
    bury(bus, 1)
    settings.BUS = {**settings.BUS, "READ_ONLY": True}

    page = open_page(DEAD)
    expect(page.locator(".jt-region")).to_contain_text("read-only")
    expect(page.get_by_role("link", name="Retry")).to_have_count(0)
    page = open_page(f"{DEAD}retry/?all=1")
    expect(page.locator(".messagelist")).to_contain_text("read-only")
    assert left(bus) == 1


def test_a_strange_query_is_answered_kindly(bus: Bus, open_page: Open) -> None:
    bury(bus, 1)
    for query in ("?partition=x", "?id=nonsense", "?before=1", "?partition=99", "?partition=", "?idd=0/1-1"):
        page = open_page(f"{DEAD}{query}")
        expect(page.locator(".jt-trouble")).to_contain_text("This cannot be asked")
        expect(page.locator(".jt-region tbody tr")).to_have_count(0)


def test_letters_that_died_lately_are_searched_with_the_other_fields_left_empty(
    bus: Bus, open_page: Open, complaints: list[str]
) -> None:
    bury(bus, 2)
    page = open_page(DEAD)

    page.get_by_role("searchbox", name="Died since").fill("1h")
    page.get_by_role("searchbox", name="Died since").press("Enter")
    expect(page.get_by_role("link", name="Show all")).to_be_visible()
    assert page.url.endswith("/dead/?since=1h")
    page.get_by_role("link", name="Discard all that match").click()
    page.get_by_role("button", name="Discard 2 dead letters").click()

    expect(page.locator(".messagelist")).to_contain_text("2 dead letters are discarded")
    assert left(bus) == 0
    assert not complaints


def test_an_action_that_does_not_say_which_letters_is_refused_on_a_page_that_leads_back(
    bus: Bus, open_page: Open
) -> None:
    bury(bus, 1)

    page = open_page(f"{DEAD}retry/?idd=0/1-1")
    expect(page.get_by_role("heading", name="Nothing was done")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("'idd' is not known here")
    page.get_by_role("link", name="To the dead letters of the group").click()

    expect(page.locator(".jt-region tbody tr")).to_have_count(1)
