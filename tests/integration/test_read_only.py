"""READ_ONLY: pages and command line change nothing at all. Every command, verb and address is tried."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import click
import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from bus import default
from bus.cli import tree
from bus.cli.audited import Audited
from bus.cli.direct import Direct
from bus.cli.session import Operator, Session
from bus.client import Bus
from bus.errors import ReadOnly
from bus.models import Topic
from bus.operating import deadletters, declarations, delayed, fates, groups, operate, positions, targets
from bus.operating.audit import Actor
from bus.streams.embedded import EmbeddedServer
from bus.topics import declared
from bus.topics.declared import Declared
from bus.values import TopicSpec

pytestmark = pytest.mark.django_db(transaction=True)

#: Every command, with arguments that would do something.
COMMANDS = {
    "publish": ["orders", "1"],
    "topic create": ["wages"],
    "topic change": ["orders", "--partitions", "2", "--apply"],
    "topic sync": [],
    "topic delete": ["orders", "--apply", "--confirm", "orders"],
    "group create": ["orders", "payroll"],
    "group pause": ["orders", "inventory"],
    "group resume": ["orders", "ledger"],
    "group reset": ["orders", "inventory", "--to", "latest", "--apply"],
    "group delete": ["orders", "inventory", "--apply"],
    "dead retry": ["orders", "inventory", "--all", "--apply"],
    "dead discard": ["orders", "inventory", "--all", "--apply"],
    "delayed cancel": ["orders", "--all", "--apply"],
    "outbox relay": [],
    "server stop": [],
}
#: Every other one: it looks only, or, as `server start`, does nothing to topics, groups and messages.
LOOKING = {
    "topics": [], "topic list": [], "topic describe": ["orders"], "tail": ["orders"], "groups": [],
    "group list": [], "group describe": ["orders", "inventory"], "group positions": ["orders", "inventory"],
    "dead list": ["orders", "inventory"],
    "dead show": ["orders", "inventory", "0/1-1"], "delayed list": ["orders"],
    "pending list": ["orders", "inventory"], "outbox status": [], "workers": [], "doctor": [],
    "server start": [], "server status": [],
}  # fmt: skip
#: What the hands of the command line only look at.
LOOKS = {"facts", "drift", "check_deletable", "outboxes"}


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bus]:
    """A bus for looking only, on which there is something to change everywhere."""
    monkeypatch.setattr(declared, "by_code", Declared())
    writer = Bus(server.url, prefix=prefix)
    Topic.objects.create(name="orders", partitions=1)
    Topic.objects.create(name="stock", partitions=1)  # Redis does not have it: `topic sync` would make it
    writer.registry.project([TopicSpec(name="orders")])
    for group in ("inventory", "ledger"):
        groups.create(writer, "orders", group)
    groups.pause(writer, "orders", "ledger")
    writer.publish("orders", 1)
    writer.publish("orders", 1, delay=3600)
    dead = writer.keys.partition("orders", 0).of_group("inventory")
    letters = next(key for key in dead if ":dead:" in key)
    writer.client.call("XADD", letters, "*", "v", "1", "id", "1-1", "reason", "why", "attempts", "1")
    settings.BUS = {"URL": server.url, "PREFIX": prefix, "READ_ONLY": True}
    yield default.get()
    default.reset()
    writer.close()


def everything(bus: Bus) -> dict[bytes, bytes]:
    """Every key of the bus as the server keeps it."""
    keys = sorted(bus.client.call("KEYS", f"{bus.keys.prefix}*"))
    return dict(zip(keys, bus.client.pipe([("DUMP", key) for key in keys]), strict=True))


def rows() -> list[object]:
    """All tables of ours but the audit, which keeps what was refused."""
    with connection.cursor() as cursor:
        tables = [name for name in connection.introspection.table_names(cursor) if name.startswith("jitney_")]
        found: list[object] = []
        for table in sorted(set(tables) - {"jitney_auditrecord"}):
            cursor.execute(f"SELECT * FROM {table}")
            found.append((table, cursor.fetchall()))
    assert found
    return found


@pytest.fixture
def unchanged(bus: Bus) -> Iterator[Callable[[], bool]]:
    """Whether everything is still as at the beginning; asked once more at the end."""
    before = everything(bus), rows()
    assert len(before[0]) > 6
    yield lambda: (everything(bus), rows()) == before
    assert (everything(bus), rows()) == before


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from leaves(below, (*path, name))
    else:
        yield " ".join(path)


def test_every_command_is_known_to_these_tests() -> None:
    assert set(leaves(tree.root)) == COMMANDS.keys() | LOOKING.keys()


@pytest.mark.parametrize("hands", [Audited, Direct])
@pytest.mark.parametrize("command", COMMANDS | LOOKING)
def test_no_command_changes_anything(
    bus: Bus, unchanged: Callable[[], bool], capsys: pytest.CaptureFixture[str], command: str, hands: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "stdin", StringIO())
    arguments = [*command.split(), *(COMMANDS | LOOKING)[command]]
    code = tree.run(Session(lambda: bus, hands), arguments, "bus")
    written = capsys.readouterr()
    if command in COMMANDS:
        needs_database = hands is Direct and command == "topic sync"
        told = "needs the project's database" if needs_database else "READ_ONLY"
        assert (code, told in written.err) == (2 if needs_database else 1, True)
    assert unchanged()


@pytest.mark.parametrize("hands", [Audited, Direct])
def test_each_of_the_operators_hands_is_tied(bus: Bus, unchanged: Callable[[], bool], hands: Any) -> None:
    verbs = {name for name in vars(Operator) if not name.startswith("_") and name != "remark"} - LOOKS
    assert len(verbs) >= 10
    for name in verbs:
        if hands is Direct and name == "sync":
            continue  # it needs the database, and says so
        with pytest.raises(ReadOnly):
            call(getattr(hands(bus), name))
        assert unchanged(), name


def test_each_verb_of_the_api_is_refused(bus: Bus, unchanged: Callable[[], bool]) -> None:
    public = [each for name, each in inspect.getmembers(operate, inspect.isfunction) if name[0] != "_"]
    operated = [each for each in public if "actor" in inspect.signature(each).parameters]
    assert len(operated) >= 10
    beneath = [groups.create, groups.pause, groups.resume, groups.delete, fates.retry,
               fates.discard, delayed.cancel, declarations.sync, positions.reset]  # fmt: skip
    for function in [*operated, *beneath]:
        with pytest.raises(ReadOnly):
            call(function, bus=bus, actor=Actor("cli", "ada"))
        assert unchanged(), function


def call(function: Callable[..., Any], **known: Any) -> None:
    """Call it with something for each argument that it must have."""
    values = {"name": "orders", "topic": "orders", "group": "inventory", "confirm": "orders", "partitions": 2,
              "start": "latest", "ordering": "key", "changes": {"partitions": 2}, "retention": None,
              "notes": "", "selection": deadletters.Selection(), "letters": [], "refs": [],
              "basis": None, "tell": lambda _done: None}  # fmt: skip
    values["plan"] = values["wanted"] = positions.Plan("orders", "inventory", targets.at("latest"), ())
    if function is operate.save_topic:
        values["topic"] = Topic(name="wages")
    values |= known
    parameters = inspect.signature(function).parameters.values()
    needed = [each for each in parameters if each.default is each.empty or each.name in known]
    positional = [values[each.name] for each in needed if each.kind is not each.KEYWORD_ONLY]
    function(
        *positional, **{each.name: values[each.name] for each in needed if each.kind is each.KEYWORD_ONLY}
    )


def addresses(patterns: list[Any], before: str = "") -> Iterator[str]:
    """All addresses of our pages in the admin, with something for each part that varies."""
    for each in patterns:
        route = before + str(each.pattern)
        if isinstance(each, URLResolver):
            yield from addresses(each.url_patterns, route)
        elif isinstance(each, URLPattern) and "jitney/" in route:
            yield route


def test_no_address_of_the_admin_changes_anything(bus: Bus, unchanged: Callable[[], bool]) -> None:
    client = Client(raise_request_exception=False)
    client.force_login(User.objects.create_superuser("ada"))
    names = {"name": "orders", "group_name": "inventory", "id": "0/1-1"}
    key = str(Topic.objects.get(name="orders").pk)
    post = {"name": "wages", "partitions": "3", "notes": "x", "retention": "", "confirm": "orders",
            "id": "0/1-1", "until": "9999999999999-0", "post": "yes", "action": "delete_selected",
            "_selected_action": key}  # fmt: skip
    tried = 0
    for route in addresses(get_resolver().url_patterns):
        path = "/" + route.replace("^", "").replace("$", "")
        for part in sorted(set(re.findall(r"<(?:\w+:)?(\w+)>", path))):
            value = key if part == "object_id" else names.get(part, "orders")
            path = re.sub(rf"<(?:\w+:)?{part}>", value, path)
        for method in (client.get, client.post):
            answer = method(path, post)
            assert answer.status_code < 500, (path, answer.status_code)
            tried += 1
        assert unchanged(), path
    assert tried > 20


def test_migrate_stores_no_topics(bus: Bus, unchanged: Callable[[], bool]) -> None:
    call_command("migrate", verbosity=0)
    with pytest.raises(ReadOnly):
        declarations.sync(bus)


def test_what_code_publishes_is_published(bus: Bus) -> None:
    assert bus.publish("orders", 2).partition == 0
