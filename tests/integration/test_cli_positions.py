"""`bus group reset` and `bus group positions`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from bus.cli import tree
from bus.cli.audited import Audited
from bus.cli.session import Session
from bus.client import Bus
from bus.models import AuditRecord
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.values import TopicSpec

pytestmark = pytest.mark.django_db

Run = Callable[..., int]


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.registry.project([TopicSpec(name="orders", partitions=2)])
    bus.registry.declare_groups([GroupSpec(topic="orders", name="stock")])
    for partition in range(2):
        stream = bus.keys.partition("orders", partition).stream
        for number in range(1, 11):
            bus.client.call("XADD", stream, f"{number}000-0", "v", str(number))
    yield bus
    bus.close()


@pytest.fixture
def run(bus: Bus) -> Run:
    return lambda *arguments: tree.run(Session(lambda: bus, Audited), arguments, "bus")


def offsets(run: Run, capsys: pytest.CaptureFixture[str]) -> list[int]:
    capsys.readouterr()
    assert run("group", "positions", "orders", "stock", "--json") == 0
    return [row["offset"] for row in orjson.loads(capsys.readouterr().out)]


def test_a_reset_shows_its_plan_and_is_done_and_audited_only_with_apply(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("group", "reset", "orders", "stock", "--offset", "4") == 0
    said = capsys.readouterr().out
    assert "Group stock of topic orders to offset 4: 0 messages again, 8 messages skipped." in said
    assert "add --apply" in said
    assert offsets(run, capsys) == [0, 0]
    assert not AuditRecord.objects.filter(verb="reset group").exists()
    assert run("group", "reset", "orders", "stock", "--offset", "4", "--apply", "--json") == 0
    done = orjson.loads(capsys.readouterr().out)
    assert done["applied"] is True
    assert [(each["skipped"], each["after"]["id"]) for each in done["partitions"]] == [(4, "4000-0")] * 2
    assert offsets(run, capsys) == [4, 4]
    record = AuditRecord.objects.get(verb="reset group")
    assert (record.topic, record.group, record.error) == ("orders", "stock", "")
    assert record.detail["target"] == "offset 4"
    assert record.detail["partitions"][0]["before"] == [0, "0-0"]


def test_positions_are_exported_and_imported_as_csv_and_as_json(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for form in ("csv", "json"):
        run("group", "reset", "orders", "stock", "--offset", "3", "--partition", "0", "--apply")
        run("group", "reset", "orders", "stock", "--offset", "7", "--partition", "1", "--apply")
        capsys.readouterr()
        assert run("group", "positions", "orders", "stock", "--export", form) == 0
        file = tmp_path / f"positions.{form}"
        file.write_text(capsys.readouterr().out)
        run("group", "reset", "orders", "stock", "--to", "latest", "--apply")
        assert offsets(run, capsys) == [10, 10]
        assert run("group", "reset", "orders", "stock", "--import", str(file), "--apply") == 0
        assert offsets(run, capsys) == [3, 7]


def test_an_applied_plan_with_another_basis_is_refused_and_the_new_plan_is_shown(
    run: Run, bus: Bus, capsys: pytest.CaptureFixture[str]
) -> None:
    run("group", "reset", "orders", "stock", "--to", "latest", "--json")
    basis = orjson.loads(capsys.readouterr().out)["basis"]
    bus.client.call("XGROUP", "SETID", bus.keys.partition("orders", 0).stream, "stock", "5000-0")
    arguments = ("group", "reset", "orders", "stock", "--to", "latest", "--apply", "--basis", basis)
    assert run(*arguments) == 1
    said = capsys.readouterr()
    assert "nothing was done" in said.err
    assert "15 messages skipped" in said.out
    assert offsets(run, capsys) == [5, 0]
    assert AuditRecord.objects.get(verb="reset group").error


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "Say where to in one way"),
        (("--to", "latest", "--offset", "1"), "Say where to in one way"),
        (("--to", "soon"), "not a position"),
        (("--to", "2030-01-31T12:00"), "no time zone"),
        (("--offset", "-1"), "--offset"),
        (("--ago", "never"), "not a duration"),
        (("--like", "nobody"), "no consumer group 'nobody'"),
        (("--to", "latest", "--partition", "9"), "partitions 0 to 1, no 9"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_was_wrong(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], why: str
) -> None:
    assert run("group", "reset", "orders", "stock", *arguments, "--apply") != 0
    assert why in capsys.readouterr().err
    assert offsets(run, capsys) == [0, 0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no positions"),
        ("[]", "has no positions"),
        ("[1", "neither CSV nor JSON"),
        ("[1]", "entry 1 has no partition"),
        ("partition,position\n0\n", "entry 1 has no partition, and a position"),
        ("partition,position\n0,1-0\n0,2-0\n", "entry 2 is the second one of partition 0"),
        ("partition,position\n0,soon\n", "neither an offset nor an id"),
        ("partition,position\n7,1-0\n", "Too many: 7"),
    ],
)
def test_a_bad_file_of_positions_changes_nothing(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, why: str
) -> None:
    file = tmp_path / "positions"
    file.write_text(text)
    assert run("group", "reset", "orders", "stock", "--import", str(file), "--apply") != 0
    assert why in capsys.readouterr().err
    assert offsets(run, capsys) == [0, 0]
