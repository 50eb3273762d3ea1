"""A plan says what `--apply` would refuse: where it ends well, applying it right after it is not refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import click
import pytest

from bus.cli import tree
from bus.cli.audited import Audited
from bus.cli.direct import Direct
from bus.cli.session import Session
from bus.client import Bus
from bus.models import Topic
from bus.operating import declarations
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.values import TopicSpec

pytestmark = pytest.mark.django_db(transaction=True)

#: Every command with a plan → what it may be asked for.
COMMANDS = {
    "topic change": [
        ("wages", "--partitions", "4"), ("wages", "--partitions", "1"), ("wages", "--retention", "1d"),
        ("wages", "--notes", "hello"), ("nothing", "--partitions", "2"),
    ],
    "topic delete": [("wages", "--confirm", "wages"), ("nothing", "--confirm", "nothing")],
    "group delete": [("wages", "payroll"), ("wages", "nobody"), ("nothing", "payroll")],
    "group reset": [
        ("wages", "payroll", "--to", "earliest"), ("wages", "payroll", "--shift", "-5"),
        ("wages", "nobody", "--to", "latest"), ("nothing", "payroll", "--to", "latest"),
    ],
    "dead retry": [
        ("wages", "payroll", "--all"), ("wages", "nobody", "--all"), ("wages", "payroll", "0/1-1"),
    ],
    "dead discard": [
        ("wages", "payroll", "--all"), ("wages", "nobody", "--all"), ("wages", "payroll", "0/1-1"),
    ],
    "delayed cancel": [("wages", "--all"), ("wages", "0/d1"), ("nothing", "--all")],
}  # fmt: skip

#: What may be so of the topic.
STATES = (
    "of the database", "of code", "in Redis alone", "read-only", "of a newer layout", "unreadable",
    "of a newer version", "larger in Redis",
)  # fmt: skip


def leaves(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from leaves(below, f"{path} {name}".strip())
    else:
        yield path, command


def test_every_command_with_a_plan_is_tried_here() -> None:
    planning = {
        path for path, command in leaves(tree.root) if any(one.name == "apply" for one in command.params)
    }
    assert planning == set(COMMANDS)


@pytest.fixture
def make_bus(server: EmbeddedServer, prefix: str) -> Iterator[Callable[[str], Bus]]:
    made: list[Bus] = []

    def make(state: str) -> Bus:
        bus = Bus(server.url, prefix=f"{prefix}{len(made)}")
        made.append(bus)
        spec = TopicSpec(name="wages", partitions=2)
        if state == "of code":
            bus.declared.add(spec)
            declarations.sync(bus)
        elif state == "in Redis alone":
            bus.registry.project([spec])
        else:
            run(bus, Audited, "topic", "create", "wages", "--partitions", "2")
        bus.registry.declare_groups([GroupSpec(topic="wages", name="payroll")])
        bus.publish("wages", 1, delay=3600)
        topics, call = bus.keys.topics, bus.client.call
        if state == "of a newer layout":
            call("HSET", bus.keys.meta, "layout", "99")
        elif state == "unreadable":
            call("HSET", topics, "wages", "junk")
        elif state == "of a newer version":
            call("HSET", topics, "wages", '{"partitions": "two"}')
        elif state == "larger in Redis":
            bus.registry.project([TopicSpec(name="wages", partitions=8)])
        if state == "read-only":
            object.__setattr__(bus.settings, "read_only", True)
        return bus

    yield make
    for bus in made:
        bus.close()


def run(bus: Bus, operator: Any, *arguments: str) -> int:
    return tree.run(Session(lambda: bus, operator), arguments, "bus")


@pytest.mark.parametrize(
    ("command", "options", "operator", "state"),
    [
        (command, options, operator, state)
        for command, several in COMMANDS.items()
        for options, operator, state in product(several, (Audited, Direct), STATES)
    ],
)
def test_a_plan_that_ends_well_can_be_applied(
    make_bus: Callable[[str], Bus], command: str, options: tuple[str, ...], operator: Any, state: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bus = make_bus(state)
    monkeypatch.setattr("bus.topics.declared.by_code", bus.declared)

    planned = run(bus, operator, *command.split(), *options)
    said = capsys.readouterr()
    applied = run(bus, operator, *command.split(), *options, "--apply")

    assert planned == applied, said.err + capsys.readouterr().err
    assert (planned == 0) == ("add --apply" in said.out)


@pytest.mark.parametrize("state", ["of a newer layout", "of a newer version", "larger in Redis"])
def test_a_change_that_redis_would_refuse_changes_nothing_in_the_database(
    make_bus: Callable[[str], Bus], state: str
) -> None:
    bus = make_bus(state)

    assert run(bus, Audited, "topic", "change", "wages", "--partitions", "4", "--apply") == 1

    assert Topic.objects.get(name="wages").partitions == 2


def test_a_change_of_a_topic_that_code_declares_is_refused_by_its_plan(
    make_bus: Callable[[str], Bus], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bus = make_bus("of code")
    monkeypatch.setattr("bus.topics.declared.by_code", bus.declared)

    assert run(bus, Audited, "topic", "change", "wages", "--partitions", "4") == 1

    assert "declared in code" in capsys.readouterr().err
