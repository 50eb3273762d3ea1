"""Each role has exactly the access rules of docs/security.md: what it is for works, and nothing beyond it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client as Browser

from bus import default, doctor, observe
from bus.cli import tree
from bus.cli.audited import Audited
from bus.cli.direct import Direct
from bus.cli.session import Session
from bus.client import Bus
from bus.errors import BusUnavailable, Forbidden
from bus.operating import groups
from bus.publishing.producer import Producer
from bus.streams.connect import is_forbidden
from bus.streams.embedded import EmbeddedServer
from bus.transactions.outbox import Relay
from tests import loops
from tests.acls import as_user, rules
from tests.integration.test_read_only import LOOKING

pytestmark = [pytest.mark.both_servers, pytest.mark.django_db(transaction=True)]


GROUP = "topic/named/orders/groups/inventory/"
PAGES = ["overview/", "topic/", "topic/named/orders/", "topic/named/orders/messages/", "worker/", GROUP,
         f"{GROUP}dead/"]  # fmt: skip


@pytest.fixture
def admin(own_server: EmbeddedServer) -> Iterator[Bus]:
    """Somebody who may do everything, with the prefix of the document."""
    bus = Bus(own_server.url)
    bus.topic("orders", partitions=2)
    bus.registry.project(bus.declared.specs().values())
    groups.create(bus, "orders", "inventory")
    bus.publish("orders", "a secret", key="k", message_id="old")
    bus.publish("orders", 1, delay=3600)
    yield bus
    bus.close()


@pytest.fixture(params=["publisher", "plain"])
def publisher(request: pytest.FixtureRequest, admin: Bus, own_server: EmbeddedServer) -> Iterator[Bus]:
    bus = as_user(own_server, "publisher", rules(request.param))
    bus.is_plain = request.param == "plain"  # type: ignore[attr-defined]
    yield bus
    bus.close()


def stored(bus: Bus) -> int:
    return sum(part.next_offset or 0 for part in observe.partitions(bus, "orders"))


# ---------------------------------------------------------------------- publisher


def test_a_publisher_publishes_in_every_way(publisher: Bus, admin: Bus) -> None:
    before = stored(admin)
    publisher.publish("orders", 1, key="a")
    assert publisher.publish_many("orders", [1, 2, 3]) == 3
    with Producer(publisher) as producer:
        assert producer.send("orders", 1).result(20).id
    loops.run(publisher.apublish("orders", 1))
    with transaction.atomic():
        publisher.publish_on_commit("orders", 1)
    assert stored(admin) == before + 7
    # and, by scripts
    for work in (
        lambda: publisher.publish("orders", 1, message_id="new"),
        lambda: publisher.publish("orders", 1, delay=0.001),
        lambda: publisher.publish("orders", 1, delay=3600, message_id="later"),
    ):
        if publisher.is_plain:  # type: ignore[attr-defined]
            with pytest.raises(Forbidden):
                work()
        else:
            assert work().id
    if not publisher.is_plain:  # type: ignore[attr-defined]
        assert publisher.publish("orders", 1, message_id="new").duplicate


def test_a_publisher_writes_and_relays_an_outbox(admin: Bus, own_server: EmbeddedServer) -> None:
    bus = as_user(own_server, "publisher", rules("publisher"))
    bus.topic("orders", partitions=2)
    with transaction.atomic():
        bus.publish_in_transaction("orders", 1, key="a")
    before = stored(admin)
    assert Relay(bus, "default").run() == 1
    assert stored(admin) == before + 1
    bus.close()


def test_a_publisher_cannot_make_a_stream_again_and_says_so(publisher: Bus, admin: Bus) -> None:
    publisher.publish("orders", 1, key="a")
    for number in range(2):
        admin.client.call("DEL", admin.keys.partition("orders", number).stream)
    with pytest.raises(BusUnavailable, match="rules of Redis forbid"):
        publisher.publish("orders", 1, key="a")


def test_a_publisher_can_do_nothing_else(publisher: Bus, admin: Bus) -> None:
    keys = admin.keys.partition("orders", 0)
    stream, letters = keys.stream, keys.dead("inventory")
    for command in (
        ("XRANGE", stream, "-", "+"), ("XREAD", "STREAMS", stream, "0"), ("XREVRANGE", stream, "+", "-"),
        ("XREADGROUP", "GROUP", "inventory", "0", "STREAMS", stream, ">"), ("XINFO", "STREAM", stream),
        ("XDEL", stream, "1-1"), ("XTRIM", stream, "MAXLEN", "0"), ("DEL", stream), ("UNLINK", stream),
        ("SET", stream, "x"), ("RENAME", stream, "x"), ("EXPIRE", stream, "1"), ("GET", stream),
        ("XGROUP", "DESTROY", stream, "inventory"), ("XACK", stream, "inventory", "1-1"),
        ("SET", keys.lease("inventory", "0"), "mine"), ("GET", keys.lease("inventory", "0")),
        ("XADD", letters, "*", "v", "1"), ("XRANGE", letters, "-", "+"),
        ("ZADD", keys.retry("inventory"), "0", "1-1"), ("HSET", keys.state("inventory"), "era", "x"),
        ("HGETALL", keys.delayed_body), ("HGET", keys.delayed_body, "1"), ("ZRANGE", keys.delayed, "0", "-1"),
        ("HSET", admin.keys.topics, "x", "{}"), ("HDEL", admin.keys.topics, "orders"),
        ("HSET", admin.keys.groups, "x", "{}"), ("HGETALL", admin.keys.groups),
        ("DEL", admin.keys.due), ("ZRANGE", admin.keys.due, "0", "-1"), ("ZREM", admin.keys.due, "orders/0"),
        ("XADD", admin.keys.control, "*", "hint", "x"), ("HSET", admin.keys.meta, "layout", "99"),
        ("KEYS", "*"), ("SCAN", "0"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("INFO",), ("ACL", "LIST"),
        ("EVAL", "return redis.call('SET', KEYS[1], 'x')", "1", stream),
        ("EVAL", "return redis.call('XRANGE', KEYS[1], '-', '+')", "1", stream),
        ("EVAL", "return redis.call('GET', KEYS[1])", "1", keys.lease("inventory", "0")),
    ):  # fmt: skip
        (reply,) = publisher.client.pipe([command])
        assert is_forbidden(reply), (command, reply)


# ---------------------------------------------------------------------- viewer


@pytest.fixture
def viewer(admin: Bus, own_server: EmbeddedServer, settings: Any) -> Iterator[Bus]:
    """The default bus of a project that only looks."""
    made = as_user(own_server, "viewer", rules("viewer"))
    settings.BUS = {"URL": str(made.settings.url), "READ_ONLY": True}
    yield default.get()
    default.reset()
    made.close()


def test_a_viewer_sees_all_pages(viewer: Bus, admin: Bus) -> None:
    browser = Browser()
    browser.force_login(User.objects.create_superuser("ada"))
    for path in PAGES:
        for more in ("", "?live=1"):
            answer = browser.get(f"/admin/jitney/{path}{more}")
            assert answer.status_code == 200, (path, answer.content.decode()[-2000:])
            assert "forbid" not in answer.content.decode()


@pytest.mark.parametrize("hands", [Audited, Direct])
def test_a_viewer_runs_every_command_that_looks(
    viewer: Bus, admin: Bus, hands: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, arguments in LOOKING.items():
        if command.startswith(("server", "outbox")):
            continue
        tree.run(Session(lambda: viewer, hands), [*command.split(), *arguments], "bus")
        written = capsys.readouterr()
        said = (written.err + written.out).replace("CONFIG is forbidden", "")
        assert "forbid" not in said, command
    assert {finding.level for finding in doctor.examine(viewer)} <= {"ok", "warning"}
    (rights,) = [finding for finding in doctor.examine(viewer) if finding.check == "rights"]
    assert rights.level == "ok"


def test_a_viewer_can_write_nothing(viewer: Bus, admin: Bus) -> None:
    keys = admin.keys.partition("orders", 0)
    for command in (
        ("XADD", keys.stream, "*", "v", "1"), ("XACK", keys.stream, "inventory", "1-1"), ("DEL", keys.stream),
        ("XREADGROUP", "GROUP", "inventory", "0", "STREAMS", keys.stream, ">"), ("SET", "x", "1"),
        ("XTRIM", keys.stream, "MAXLEN", "0"), ("XGROUP", "DESTROY", keys.stream, "inventory"),
        ("SET", keys.lease("inventory", "0"), "x"), ("HSET", admin.keys.topics, "x", "{}"),
        ("EVAL", "return redis.call('SET', KEYS[1], 'x')", "1", keys.stream), ("KEYS", "*"), ("FLUSHALL",),
        ("EXPIRE", keys.stream, "1"), ("GET", "another"), ("CONFIG", "SET", "appendonly", "no"),
    ):  # fmt: skip
        (reply,) = viewer.client.pipe([command])
        assert is_forbidden(reply), (command, reply)


# ---------------------------------------------------------------------- less than that


def test_without_info_and_time_pages_say_what_is_missing(
    admin: Bus, own_server: EmbeddedServer, settings: Any
) -> None:
    made = as_user(own_server, "viewer", [*rules("viewer"), "-info", "-time", "-client|setname"])
    settings.BUS = {"URL": str(made.settings.url), "READ_ONLY": True}
    browser = Browser()
    browser.force_login(User.objects.create_superuser("ada"))
    for path in PAGES:
        answer = browser.get(f"/admin/jitney/{path}")
        assert answer.status_code == 200, path
    shown = browser.get("/admin/jitney/overview/").content.decode()
    assert "unknown: this Redis user may not INFO" in shown
    assert "no limit" not in shown
    server = observe.server(default.get())
    assert (server.used_memory, server.max_memory, server.uptime) == (None, None, None)
    assert "info" in server.refusal.lower()
    found = {finding.check: finding for finding in doctor.examine(default.get()) if finding.level != "ok"}
    assert {"memory", "eviction", "persistence", "rights"} <= found.keys()
    assert all("Unknown" in found[name].text for name in ("memory", "eviction", "persistence"))
    assert "TIME is forbidden" in found["rights"].text
    default.reset()
    made.close()


@pytest.mark.parametrize("missing", ["-xinfo", "-@read", "-xinfo|stream"])
def test_what_cannot_be_looked_at_is_said_and_is_neither_an_error_nor_zero(
    admin: Bus, own_server: EmbeddedServer, settings: Any, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = as_user(own_server, "viewer", [*rules("viewer"), missing])
    settings.BUS = {"URL": str(made.settings.url), "READ_ONLY": True}
    browser = Browser(raise_request_exception=False)
    browser.force_login(User.objects.create_superuser("ada"))
    for path in ("overview/", "topic/named/orders/", "topic/named/orders/groups/inventory/"):
        answer = browser.get(f"/admin/jitney/{path}")
        assert answer.status_code == 503, path
        assert "The Redis user of this project may not look at this" in answer.content.decode()
    for command in (["topics"], ["group", "describe", "orders", "inventory"], ["doctor"]):
        assert tree.run(Session(default.get, Direct), command, "bus") == 1
        written = capsys.readouterr()
        assert "forbid" in written.err + written.out, command
    default.reset()
    made.close()


def test_a_publisher_needs_no_command_but_those_that_publish(admin: Bus, own_server: EmbeddedServer) -> None:
    """Neither names nor ids of connections, nor INFO, nor TIME."""
    bare = as_user(own_server, "bare", [*rules("plain"), "-client|setname", "-select"])
    before = stored(admin)
    bare.publish("orders", 1)
    with Producer(bare) as producer:
        producer.send("orders", 2)
    assert stored(admin) == before + 2
    bare.close()


def test_a_refusal_is_of_a_type_of_its_own(admin: Bus, own_server: EmbeddedServer) -> None:
    bare = as_user(own_server, "bare", rules("plain"))
    with pytest.raises(Forbidden, match=r"(?i)info"):
        bare.client.call("INFO")
    bare.close()
