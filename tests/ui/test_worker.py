"""What an operator sees while real workers come, work and die."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from bus.client import Bus
from bus.streams.embedded import EmbeddedServer
from tests.acceptance.shopping import Shop
from tests.waiting import wait_until

GROUP = "topic/named/keyed/groups/bykey/"

#: Milliseconds: generous, on a busy machine.
SOON = 40_000


@pytest.fixture
def shop(bus: Bus, bus_server: EmbeddedServer, prefix: str, tmp_path: Path) -> Iterator[Shop]:
    """Workers on the bus that the pages show."""
    shop = Shop(bus_server.url, prefix, tmp_path)
    yield shop
    shop.end()


def test_lag_rises_while_the_worker_is_stopped_and_falls_to_zero_after_its_start(
    shop: Shop, open_page: Callable[[str], Page]
) -> None:
    # Given a group whose worker was stopped
    worker = shop.worker().wait_ready()
    shop.wait_owned("keyed")
    worker.stop()
    page = open_page(GROUP)
    lag = page.locator("[data-jt-number=lag]")
    expect(lag).to_have_text("0")

    # When messages come, the open page shows it; when a worker comes, it shows that too
    shop.publish("keyed", 123)
    expect(lag).to_have_text("123", timeout=SOON)
    expect(page.locator("[data-jt-owner='0']")).to_have_text("free")

    shop.worker("two").wait_ready()
    expect(lag).to_have_text("0", timeout=SOON)
    expect(page.locator("[data-jt-number=pending]")).to_have_text("0", timeout=SOON)
    expect(page.locator("[data-jt-owner='0']")).to_have_text(re.compile(r"\w+-\d+"), timeout=SOON)


def test_the_owner_changes_after_a_kill(shop: Shop, open_page: Callable[[str], Page]) -> None:
    first = shop.worker("one", "-c", "1").wait_ready()
    shop.wait_owned("keyed")
    second = shop.worker("two", "-c", "1").wait_ready()
    wait_until(lambda: len(set(shop.owners("keyed"))) == 2, 30, "both workers to own lanes")
    page = open_page(GROUP)
    place = page.locator(f"[data-jt-owner] a[title*='-{first.pid}-']")
    expect(place).to_have_count(4, timeout=SOON)

    first.kill()

    # Within 20 s, as promised; the deadline here leaves room for a busy machine.
    expect(place).to_have_count(0, timeout=SOON)
    expect(page.locator(f"[data-jt-owner] a[title*='-{second.pid}-']")).to_have_count(8, timeout=SOON)
