"""The pages in a browser, under a policy that forbids everything inline."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from bus.client import Bus
from bus.models import AuditRecord
from bus.streams.embedded import EmbeddedServer
from tests.servers import valkey_server
from tests.ui import scene
from tests.ui.conftest import sign_in

Open = Callable[[str], Page]

INVENTORY = "topic/named/orders/groups/inventory/"
INLINE = re.compile(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", re.IGNORECASE)

#: Milliseconds: several refreshes, on a busy machine.
SOON = 20_000


def number(page: Page, name: str) -> Any:
    return page.locator(f"[data-jt-number={name}]")


@pytest.mark.parametrize("count", [0, 1, 300])
def test_overview_and_topics_show_any_number_of_topics(
    bus: Bus, open_page: Open, complaints: list[str], count: int
) -> None:
    scene.declare_many(bus, count, "inventory")

    page = open_page("overview/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Overview")
    expect(page.locator(".jt-tiles")).to_contain_text("Messages")
    if count:
        expect(number(page, "lag")).to_have_text(str(count))
        expect(page.locator(".jt-panel tbody tr")).to_have_count(min(count, 15))
    else:
        expect(page.get_by_role("heading", name="No topics yet")).to_be_visible()

    page = open_page("topic/")
    expect(page.locator(".jt-region tbody tr")).to_have_count(min(count, 50))
    assert not complaints


def test_pages_have_nothing_inline(bus: Bus, open_page: Open, page: Page, complaints: list[str]) -> None:
    scene.declare(bus, "orders", 2, ["inventory"])
    scene.publish(bus, "orders", 5)
    scene.enrol(bus, "web1")

    for path in (
        "overview/",
        "topic/",
        "topic/named/orders/",
        "topic/named/orders/messages/",
        INVENTORY,
        "worker/",
    ):
        response = page.goto(f"/admin/jitney/{path}")
        assert response is not None
        assert response.status == 200, path
        assert not INLINE.findall(response.text()), path
    assert not complaints


def test_three_hundred_topics_are_searched_sorted_and_paged(bus: Bus, open_page: Open) -> None:
    scene.declare_many(bus, 300, "inventory")
    scene.publish(bus, "topic-123", 40)
    page = open_page("topic/")

    page.get_by_role("link", name="Next").click()
    expect(page.locator(".jt-pagerplace")).to_have_text(re.compile("51.100 of 300"))
    page.get_by_role("link", name="Lag", exact=True).click()
    expect(page.locator(".jt-region tbody tr").first).to_contain_text("topic-123")
    expect(page.get_by_role("columnheader", name="Lag")).to_have_attribute("aria-sort", "descending")
    page.get_by_role("searchbox", name="Search topics").fill("IC-29")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".jt-region tbody tr")).to_have_count(10)
    page.get_by_role("searchbox", name="Search topics").fill("nothing like it")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("heading", name="No match")).to_be_visible()


def test_lag_rises_and_falls_on_the_page_without_a_reload(
    bus: Bus, open_page: Open, complaints: list[str]
) -> None:
    scene.declare(bus, "orders", 4, ["inventory"])
    page = open_page(INVENTORY)
    expect(number(page, "lag")).to_have_text("0")
    page.evaluate("window.stillHere = true")

    scene.publish(bus, "orders", 1500)
    expect(number(page, "lag")).to_have_text("1,500", timeout=SOON)
    expect(page.locator(".jt-state")).to_contain_text("no workers")
    scene.drain(bus, "orders", "inventory", limit=400)
    expect(number(page, "lag")).to_have_text("1,100", timeout=SOON)
    scene.drain(bus, "orders", "inventory")
    expect(number(page, "lag")).to_have_text("0", timeout=SOON)

    assert page.evaluate("window.stillHere") is True
    assert not complaints


def test_rate_is_a_dash_at_first_and_a_number_after_two_looks(bus: Bus, open_page: Open, page: Page) -> None:
    scene.declare(bus, "orders", 1)
    scene.publish(bus, "orders", 10)

    response = page.request.get("/admin/jitney/topic/")
    assert re.search(r'data-jt-rate="orders" data-jt-count="10">—<', response.text())
    open_page("topic/")
    expect(page.locator("[data-jt-rate=orders]")).to_have_text("0", timeout=SOON)


def test_an_opened_message_and_the_focus_outlive_refreshes(bus: Bus, open_page: Open) -> None:
    scene.declare(bus, "orders", 1)
    scene.publish(bus, "orders", 3)
    page = open_page("topic/named/orders/messages/")
    first = page.locator(".jt-region tbody tr", has_text='"qty":0').locator("summary")
    first.click()
    expect(page.locator("pre").filter(has_text='"sku": "A0"')).to_be_visible()

    scene.publish(
        bus, "orders", 30
    )  # the page holds 25: the opened one goes, and then nothing is lost but it
    expect(page.locator(".jt-region tbody tr")).to_have_count(25, timeout=SOON)
    newest = page.locator(".jt-region tbody tr").first.locator("summary")
    newest.click()
    key = page.locator(".jt-region tbody tr").first.get_attribute("data-jt-key")
    scene.publish(bus, "orders", 2)
    opened = page.locator(f'.jt-region tbody tr[data-jt-key="{key}"]')
    expect(page.locator(".jt-region tbody tr").nth(2)).to_have_attribute(
        "data-jt-key", key or "", timeout=SOON
    )
    expect(opened.locator("details")).to_have_attribute("open", "")
    expect(opened.locator("summary")).to_be_focused()


def test_message_values_are_exact_escaped_and_cut(bus: Bus, open_page: Open, complaints: list[str]) -> None:
    scene.declare(bus, "orders", 1)
    bus.publish("orders", {"id": 9007199254740993, "html": "<img src=x onerror=alert(1)>"}, key="<b>k</b>")
    bus.publish("orders", b"\xff\x00")
    stream = bus.keys.partition("orders", 0).stream
    bus.client.call("XADD", stream, "*", "v", "{broken")
    bus.publish("orders", {"long": "x" * 100_000})

    rows = open_page("topic/named/orders/messages/").locator(".jt-region tbody tr")

    expect(rows).to_have_count(4)
    assert len(rows.nth(0).locator("summary code").inner_text()) == 201
    rows.nth(0).locator("summary").click()
    expect(rows.nth(0)).to_contain_text("Only the first 64 KiB")
    expect(rows.nth(1)).to_contain_text("undecodable")
    expect(rows.nth(2)).to_contain_text(r"\xff\x00")
    expect(rows.nth(3)).to_contain_text("9007199254740993")
    expect(rows.nth(3)).to_contain_text("<b>k</b>")
    expect(rows.nth(3)).to_contain_text("<img src=x onerror=alert(1)>")
    assert not complaints


def test_a_group_is_paused_and_resumed_with_an_audit_record(bus: Bus, open_page: Open) -> None:
    scene.declare(bus, "orders", 2, ["inventory"])
    page = open_page(INVENTORY)

    page.get_by_role("button", name="Pause the group").click()
    expect(page.locator(".jt-state")).to_contain_text("paused")
    page.locator(".jt-state").get_by_role("button", name="Resume").click()
    expect(page.locator(".jt-state")).to_contain_text("OK")

    verbs = [(one.verb, one.who, one.outcome) for one in AuditRecord.objects.order_by("pk")]
    assert verbs == [("pause group", "operator", "ok"), ("resume group", "operator", "ok")]


def test_a_silent_worker_is_told_from_a_running_one(
    bus: Bus, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("admin_ui.data.pulse.SILENCE", 3.0)
    scene.declare(bus, "orders", 1, ["inventory"])
    scene.publish(bus, "orders", 1)
    scene.enrol(bus, "gone")
    scene.own(bus, "orders", "inventory", "gone", [0])
    page = open_page(INVENTORY)

    expect(page.locator("[data-jt-owner='0']")).to_contain_text("gone")
    expect(page.locator(".jt-state")).to_contain_text("no workers", timeout=SOON)
    expect(page.locator("[data-jt-owner='0']")).to_contain_text("silent")


def test_pages_work_without_javascript(bus: Bus, browser: Browser, live_server: Any, operator: Any) -> None:
    scene.declare(bus, "orders", 2, ["inventory"])
    scene.publish(bus, "orders", 7)
    context = browser.new_context(base_url=live_server.url, java_script_enabled=False)
    sign_in(context, operator, live_server.url)
    page = context.new_page()

    page.goto("/admin/jitney/overview/")
    expect(number(page, "lag")).to_have_text("7")
    page.get_by_role("link", name="inventory").click()
    expect(page.get_by_role("button", name="Pause the group")).to_be_visible()
    context.close()


def test_pages_are_dark_where_the_system_is(bus: Bus, open_page: Open, page: Page, tmp_path: Path) -> None:
    scene.declare(bus, "orders", 2, ["inventory"])
    scene.publish(bus, "orders", 7)
    page.emulate_media(color_scheme="dark")
    open_page(INVENTORY)

    table, text = page.evaluate(
        """() => [".jt-tiles > div", ".jt-title"].map((name, at) =>
            getComputedStyle(document.querySelector(name))[at ? "color" : "backgroundColor"]
            .match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b) / 3)"""
    )
    assert table < 60
    assert text > 200


class TestRedisAway:
    @pytest.fixture
    def bus_server(self, tmp_path: Path) -> Iterator[EmbeddedServer]:
        with valkey_server(tmp_path / "server") as server:
            yield server

    def test_the_page_says_so_and_comes_back_by_itself(
        self, bus: Bus, bus_server: EmbeddedServer, open_page: Open
    ) -> None:
        scene.declare(bus, "orders", 2, ["inventory"])
        scene.publish(bus, "orders", 7)
        page = open_page(INVENTORY)
        expect(number(page, "lag")).to_have_text("7")
        page.evaluate("window.stillHere = true")

        bus_server.stop()
        expect(page.get_by_role("alert")).to_contain_text("Redis does not answer", timeout=SOON)
        expect(page.locator("[data-jt-status]")).to_have_text("No answer; trying again")
        bus_server.restart()
        expect(number(page, "lag")).to_have_text("7", timeout=SOON)

        assert page.evaluate("window.stillHere") is True

    def test_every_page_opens_with_status_503_in_the_admin_frame(
        self, bus: Bus, bus_server: EmbeddedServer, page: Page
    ) -> None:
        scene.declare(bus, "orders", 2, ["inventory"])
        bus_server.stop()
        for path in (
            "overview/",
            "topic/",
            "topic/named/orders/",
            "topic/named/orders/messages/",
            INVENTORY,
            "worker/",
        ):
            response = page.goto(f"/admin/jitney/{path}")
            assert response is not None
            assert response.status == 503, path
            expect(page.get_by_role("alert")).to_contain_text("Redis does not answer")
            expect(page.locator("#user-tools")).to_contain_text("operator")
