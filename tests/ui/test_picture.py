"""The picture of the README: a group that is catching up. `UPDATE_PICTURE=1` stores it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from bus.client import Bus
from bus.models import Topic
from tests.ui import scene

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "lag.png"


def test_the_picture_shows_lag_per_partition(
    bus: Bus, open_page: Callable[[str], Page], tmp_path: Path
) -> None:
    scene.declare(bus, "orders", 8, ["inventory"])
    Topic.objects.create(name="orders", partitions=8)
    scene.publish(bus, "orders", 48_210)
    for partition in range(8):
        stream = bus.keys.partition("orders", partition).stream
        taken = scene.take(bus, stream, "inventory", 3_100 + partition * 320)
        bus.client.call("XACK", stream, "inventory", *taken[: -8 - partition * 3])
    scene.enrol(bus, "shop-1.4711.1")
    scene.enrol(bus, "shop-2.4802.1")
    scene.own(bus, "orders", "inventory", "shop-1.4711.1", range(4))
    scene.own(bus, "orders", "inventory", "shop-2.4802.1", range(4, 8))

    page = open_page("topic/named/orders/groups/inventory/")
    expect(page.locator("[data-jt-rate=given]")).to_have_text("0", timeout=20_000)

    target = PICTURE if os.environ.get("UPDATE_PICTURE") == "1" else tmp_path / "lag.png"
    page.screenshot(path=target, full_page=True)
    assert target.stat().st_size > 10_000
