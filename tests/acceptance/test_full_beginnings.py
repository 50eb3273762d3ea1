"""A worker whose new group is refused while the memory of Redis is full: it serves its other groups."""

from __future__ import annotations

import json

import pytest

from bus import doctor
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from tests.acceptance.shopping import Shop
from tests.waiting import wait_until


@pytest.mark.timeout(150)
def test_with_memory_full_the_old_groups_are_served_beside_a_new_one_that_is_refused(
    own_shop: Shop, own_server: EmbeddedServer
) -> None:
    # Given a group that is there, one that is new, and messages for both
    bus = own_shop.bus
    bus.registry.declare_groups([GroupSpec(topic="keyed", name="bykey")])
    own_shop.publish("keyed", 20)
    own_shop.publish("loose", 20)
    settings = {"URL": own_server.url, "PREFIX": bus.keys.prefix, "NEW_GROUP_LIMIT": 5}
    own_shop.environment["SHOP_SETTINGS"] = json.dumps({"BUS": settings})
    # When a worker of both starts while memory is full
    bus.client.call("CONFIG", "SET", "maxmemory", 1)
    own_shop.worker("one", "-c", "2", "--groups", "bykey,anyhow")
    # Then it handles what it may, and doctor names what it may not
    own_shop.wait_lines(20, topic="keyed", timeout=30)
    wait_until(lambda: any(one.check == "refused" for one in doctor.examine(bus)), 20, "doctor to say so")
    (finding,) = [one for one in doctor.examine(bus) if one.check == "refused"]
    assert "anyhow on loose (20 messages)" in finding.text
    bus.client.call("CONFIG", "SET", "maxmemory", 0)
    own_shop.assert_each_once("keyed", 20)
