"""`delayed`, and publishing with a delay, on the command line: in a Django project and without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from bus.client import Bus
from bus.errors import ReadOnly, UnknownTopic
from bus.models import AuditRecord
from bus.operating import delayed, operate
from bus.operating.delayed import DelayedRef
from bus.streams.embedded import EmbeddedServer
from bus.values import TopicSpec
from tests.integration.commandline import Run

pytestmark = pytest.mark.django_db(transaction=True)

TOPIC = "orders"
WHEN = datetime(2040, 1, 31, 12, tzinfo=UTC)
ADA = operate.Actor("admin", "ada")


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    bus = Bus(server.url, prefix=prefix)
    bus.registry.project([TopicSpec(name=TOPIC, partitions=2)])
    yield bus
    bus.close()


def schedule(bus: Bus, count: int) -> list[str]:
    """Messages of which each is due a minute before the one that was published before it; their refs."""
    receipts = [
        bus.publish(TOPIC, {"n": n}, key=str(n), message_id=f"m{n}", at=WHEN - n * timedelta(minutes=1))
        for n in range(count)
    ]
    return [f"{receipt.partition}/{receipt.id}" for receipt in receipts]


# ---------------------------------------------------------------------- publishing


def test_a_message_is_published_for_later_and_once(run: Run, bus: Bus) -> None:
    told = run("publish", TOPIC, '{"n": 1}', "--key", "a", "--delay", "12h", "--message-id", "m")
    again = run("publish", TOPIC, '{"n": 2}', "--key", "a", "--delay", "12h", "--message-id", "m")
    at = run("publish", TOPIC, "[]", "--key", "a", "--at", "2040-01-31T13:00+01:00", "--json").data

    assert "waits in partition" in told.out
    assert "was published before, and waits" in again.out
    assert (at["id"], at["duplicate"]) == ("d2", False)
    first, second = delayed.find(bus, TOPIC)
    assert first.message.value == {"n": 1}
    assert timedelta(hours=11, minutes=59) < first.due - datetime.now(UTC) <= timedelta(hours=12, seconds=1)
    assert second.due == WHEN
    now = run("publish", TOPIC, "1", "--message-id", "once")
    assert ("is published to partition" in now.out, now.code) == (True, 0)
    assert "was published before to" in run("publish", TOPIC, "1", "--message-id", "once").out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--delay", "soon"], "not a duration"),
        (["--delay", "0s"], "longer than zero"),
        (["--at", "2040-01-31T12:00"], "no time zone"),
        (["--at", "tomorrow"], "not a time"),
        (["--delay", "1s", "--at", "2040-01-31T12:00+00:00"], "either --delay or --at"),
    ],
)
def test_a_time_that_means_nothing_is_wrong_usage(run: Run, bus: Bus, options: list[str], text: str) -> None:
    result = run("publish", TOPIC, "1", *options)
    assert (result.code, text in result.err, result.out) == (2, True, "")
    assert delayed.count(bus, TOPIC) == 0


def test_files_cannot_be_delayed_and_a_delay_of_centuries_fails(run: Run, bus: Bus) -> None:
    for option in (["--delay", "1s"], ["--at", "2040-01-31T12:00+00:00"], ["--message-id", "m"]):
        assert run("publish", TOPIC, "--file", "/dev/null", *option).code == 2
    result = run("publish", TOPIC, "1", "--delay", "99999d")
    assert (result.code, "100 years" in result.err) == (1, True)


# ---------------------------------------------------------------------- looking


def test_messages_that_wait_are_listed_in_due_order(run: Run, bus: Bus) -> None:
    refs = schedule(bus, 5)

    listed = run("delayed", "list", TOPIC, "--limit", "2")
    part = run("delayed", "list", TOPIC, "--partition", "1", "--json").data

    lines = listed.out.splitlines()
    assert lines[0].split() == ["id", "due", "(UTC)", "key", "message_id", "value"]
    assert [line.split()[0] for line in lines[1:]] == [refs[4], refs[3]]
    assert "2040-01-31 11:56:00" in lines[1]
    assert "2 of 5 delayed messages" in listed.err
    assert part["delayed"] == sum(ref.startswith("1/") for ref in refs)
    [*_, last] = part["messages"]
    assert (last["id"], last["message_id"]) == (next(ref for ref in refs if ref[0] == "1"), f"m{last['key']}")
    assert last["value"] == {"n": int(last["key"])}
    assert datetime.fromisoformat(last["due"]) == WHEN - timedelta(minutes=int(last["key"]))
    assert run("delayed", "list", TOPIC, "--partition", "1").out.count("1/d") == part["delayed"]


def test_what_steers_a_terminal_or_cannot_be_read_is_shown_escaped(run: Run, bus: Bus) -> None:
    bus.publish(TOPIC, b"\x1b[31m" + b"x" * 100, key="\x07", delay=60)
    bad = bus.publish(TOPIC, 1, key="\x07", delay=60)
    body = bus.keys.partition(TOPIC, bad.partition).delayed_body
    bus.client.call("HSET", body, "0000000000000002", b"\xffrubbish")

    listed = run("delayed", "list", TOPIC)

    assert "\\x1b[31mx" in listed.out
    assert "…" in listed.out
    assert not {"\x1b", "\x07"} & set(listed.out)
    unreadable = run("delayed", "list", TOPIC, "--json").data["messages"][1]
    assert "delayed" in unreadable["undecodable"]


def test_describing_a_topic_says_how_many_wait_and_when_the_next_is_due(run: Run, bus: Bus) -> None:
    assert "delayed" not in run("topic", "describe", TOPIC).out
    schedule(bus, 3)
    assert "delayed: 3; the next is due 2040-01-31 11:58:00 UTC" in run("topic", "describe", TOPIC).out
    data = run("topic", "describe", TOPIC, "--json").data["topic"]
    assert (data["delayed"], data["next_due"]) == (3, "2040-01-31T11:58:00+00:00")


# ---------------------------------------------------------------------- cancelling


def test_cancel_counts_first_and_removes_with_apply(run: Run, bus: Bus) -> None:
    refs = schedule(bus, 6)
    command = ("delayed", "cancel", TOPIC, refs[0], refs[3], refs[3], "1/d999")

    plan = run(*command)
    assert plan.out.splitlines() == [
        "Cancel 2 delayed messages of topic orders.",
        "Nothing is done yet: add --apply to do it.",
    ]
    assert run(*command, "--json").data == {"planned": 2, "applied": False}
    assert delayed.count(bus, TOPIC) == 6

    done = run(*command, "--apply", "--json")
    assert (done.code, done.data) == (0, {"planned": 2, "applied": True, "cancelled": 2, "gone": 1})
    assert {str(one.ref) for one in delayed.find(bus, TOPIC)} == {*refs} - {refs[0], refs[3]}
    gone = run(*command, "--apply")
    assert (gone.code, "Cancelled: 0." in gone.out, "Not there" in gone.out) == (0, True, True)

    part = run("delayed", "cancel", TOPIC, "--partition", "1", "--apply", "--json").data
    assert part["cancelled"] == part["planned"] > 0
    assert run("delayed", "cancel", TOPIC, "--all", "--apply", "--json").data["gone"] == 0
    assert delayed.count(bus, TOPIC) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--apply",),
        ("0/d1", "--all"),
        ("--all", "--partition", "0"),
        ("0/1-1",),
        ("d1",),
        ("--partition", "-1"),
    ],
)
def test_wrong_usage_cancels_nothing(run: Run, bus: Bus, arguments: tuple[str, ...]) -> None:
    schedule(bus, 1)
    assert run("delayed", "cancel", TOPIC, *arguments).code == 2
    assert delayed.count(bus, TOPIC) == 1


def test_what_does_not_exist_fails_with_a_clear_text(run: Run) -> None:
    for command in (["list", "wages"], ["cancel", "wages", "--all"], ["cancel", "wages", "0/d1", "--apply"]):
        result = run("delayed", *command)
        assert (result.code, "no topic 'wages'" in result.err) == (1, True)
    beyond = run("delayed", "cancel", TOPIC, "--partition", "9")
    assert (beyond.code, "partitions 0 to 1" in beyond.err) == (1, True)


def test_a_read_only_project_refuses_to_cancel(run: Run, bus: Bus) -> None:
    schedule(bus, 1)
    object.__setattr__(bus.settings, "read_only", True)
    for apply in ((), ("--apply",)):
        result = run("delayed", "cancel", TOPIC, "--all", *apply)
        assert (result.code, "READ_ONLY" in result.err) == (1, True)
    assert delayed.count(bus, TOPIC) == 1


def test_the_audit_keeps_who_and_which_and_never_what(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delayed, "REFS_A_RECORD", 4)
    refs = [DelayedRef.parse(ref) for ref in schedule(bus, 6)]
    told: list[int] = []

    tally = operate.cancel_delayed(bus, TOPIC, [*refs, DelayedRef(0, 99)], actor=ADA, tell=told.append)

    assert (tally.cancelled, tally.gone, told) == (6, 1, [4, 7])
    records = list(AuditRecord.objects.order_by("pk"))
    assert [(one.who, one.verb, one.topic, one.outcome) for one in records] == [
        ("ada", "cancel delayed", TOPIC, "ok")
    ] * 2
    lines = [line for one in records for line in one.detail["messages"]]
    assert [line["message"] for line in lines] == [*map(str, refs), "0/d99"]
    assert [line["outcome"] for line in lines] == ["cancelled"] * 6 + ["gone"]
    assert '"n"' not in json.dumps([one.detail for one in records])


def test_a_refused_or_failed_cancel_leaves_its_record(bus: Bus) -> None:
    [ref] = map(DelayedRef.parse, schedule(bus, 1))
    with pytest.raises(UnknownTopic):
        operate.cancel_delayed(bus, "wages", [ref], actor=ADA)
    object.__setattr__(bus.settings, "read_only", True)
    with pytest.raises(ReadOnly):
        operate.cancel_delayed(bus, TOPIC, [ref], actor=ADA)
    assert [one.outcome for one in AuditRecord.objects.all()] == ["failed", "failed"]
    assert delayed.count(bus, TOPIC) == 1
