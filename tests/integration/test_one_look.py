"""A page or a command reads Redis once: no read is asked twice, so all its numbers are of one moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
from django.test import Client

from bus import default
from bus.cli import tree
from bus.cli.audited import Audited
from bus.cli.direct import Direct
from bus.cli.session import Session
from bus.client import Bus
from bus.streams.embedded import EmbeddedServer
from bus.streams.wire import Link
from bus.topics import declared
from bus.topics.declared import Declared
from tests.integration import strange
from tests.ui import scene

pytestmark = pytest.mark.django_db(transaction=True)

TOPIC, GROUP = "orders", "inventory"

Asked = Counter[tuple[bytes, ...]]

#: What `doctor` asks twice: whether it may look at any key; numbers to compare with others of one moment.
AGAIN_BY_DOCTOR = {b"INFO", b"TIME", b"ZCARD"}


@pytest.fixture(autouse=True)
def bus(server: EmbeddedServer, prefix: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    """The default bus: topics with groups of two orderings that lag, and a worker."""
    monkeypatch.setattr(declared, "by_code", Declared())
    settings.BUS = {"URL": server.url, "PREFIX": prefix}
    bus = default.get()
    scene.declare(bus, TOPIC, 3, [GROUP])
    scene.declare(bus, "mail", 2, ["sender"], "none")
    scene.publish(bus, TOPIC, 20)
    scene.publish(bus, "mail", 20)
    scene.take(bus, bus.keys.partition(TOPIC, 0).stream, GROUP, 1)
    scene.enrol(bus, "host.4711.a", [GROUP])
    scene.own(bus, TOPIC, GROUP, "host.4711.a", range(3))
    yield bus
    default.reset()


@pytest.fixture
def asked(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The commands that were sent, with their arguments."""
    commands: Asked = Counter()
    send = Link.send

    def counted(link: Link, packed: bytes, replies: int) -> None:
        commands.update(_unpacked(packed))
        send(link, packed, replies)

    monkeypatch.setattr(Link, "send", counted)
    return commands


def _unpacked(packed: bytes) -> Iterator[tuple[bytes, ...]]:
    """The commands of a write: `*2 $3 GET $3 key`, with line ends in place of the spaces."""
    at = 0
    while at < len(packed):
        end = packed.index(b"\r\n", at)
        count, at = int(packed[at + 1 : end]), end + 2
        words = []
        for _ in range(count):
            end = packed.index(b"\r\n", at)
            size, at = int(packed[at + 1 : end]), end + 2
            words.append(packed[at : at + size])
            at += size + 2
        yield tuple(words)


def assert_once(asked: Asked, again: Collection[bytes] = ()) -> None:
    """No command was sent twice."""
    assert asked, "nothing was asked at all"
    twice = {command: times for command, times in asked.items() if times > 1 and command[0] not in again}
    assert twice == {}


def assert_tables_once(asked: Asked, bus: Bus) -> None:
    """Topics, groups and workers were read once, in whole or in part."""
    tables = {key.encode() for key in (bus.keys.topics, bus.keys.groups, bus.keys.workers)}
    reads = Counter(dict.fromkeys(tables, 0))
    for command, times in asked.items():
        if command[0] in (b"HGET", b"HGETALL", b"HMGET") and command[1] in tables:
            reads[command[1]] += times
    assert {key: times for key, times in reads.items() if times > 1} == {}


@pytest.mark.parametrize("path", list(strange.every_page(TOPIC, GROUP)))
@pytest.mark.parametrize("query", [{}, {"live": "1"}])
def test_a_page_asks_nothing_twice(
    bus: Bus, asked: Asked, admin_client: Client, path: str, query: dict[str, str]
) -> None:
    confirms = path.endswith(("retry/", "discard/"))
    response = admin_client.get(path, {"all": "1"} if confirms else {} if "audit" in path else query)
    assert response.status_code == 200
    if "audit" not in path:
        assert_once(asked)
        assert_tables_once(asked, bus)


@pytest.mark.parametrize("operator", [Audited, Direct])
@pytest.mark.parametrize("arguments", strange.readings(TOPIC, GROUP), ids=" ".join)
def test_a_command_asks_nothing_twice(
    bus: Bus, asked: Asked, operator: Callable[[Bus], Any], arguments: list[str]
) -> None:
    for more in ([], ["--json"]):
        asked.clear()
        code = tree.run(Session(lambda: bus, operator), [*arguments, *more], "bus")
        assert code in (0, 1)
        assert_once(asked, AGAIN_BY_DOCTOR if arguments == ["doctor"] else ())
        assert_tables_once(asked, bus)
