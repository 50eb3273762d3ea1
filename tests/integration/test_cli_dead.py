"""`dead` and `pending` on the command line, in a Django project and without one."""

from __future__ import annotations

import pytest

from bus.cli.audited import Audited
from bus.client import Bus
from bus.models import AuditRecord
from tests.integration.commandline import Run
from tests.integration.test_deadletters import GROUP, TOPIC, Scene, drain

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def scene(bus: Bus) -> Scene:
    return Scene(bus)


def test_letters_are_listed_newest_first_and_shown_with_all_there_is(run: Run, scene: Scene) -> None:
    ids = scene.kill(3)

    listed = run("dead", "list", TOPIC, GROUP, "--limit", "2")

    lines = listed.out.splitlines()
    assert lines[0].split() == ["id", "message", "key", "attempts", "died", "(UTC)", "reason"]
    assert [line.split()[1] for line in lines[1:]] == [ids[2], ids[1]]
    assert "2 of 3 dead letters" in listed.err
    data = run("dead", "list", TOPIC, GROUP, "--json", "--reason", "no 0").data
    assert (data["kept"], data["dropped"]) == (3, 0)
    [letter] = data["letters"]
    assert (letter["message_id"], letter["key"], letter["value"]) == (ids[0], "a", {"n": 0})
    assert (letter["headers"], letter["attempts"], letter["error"]) == ({"tenant": "de"}, 1, "Traceback: x")
    shown = run("dead", "show", TOPIC, GROUP, letter["id"])
    for part in (f"{TOPIC}/0/{ids[0]}", "ValueError: no 0", "Traceback: x", '{"n":0}', '{"tenant":"de"}'):
        assert part in shown.out
    assert run("dead", "show", TOPIC, GROUP, letter["id"], "--json").data == letter


def test_a_letter_that_nobody_can_decode_is_shown_as_it_is(run: Run, scene: Scene, bus: Bus) -> None:
    bus.client.call("XADD", scene.keys.stream, "*", "v", b"{no json \x1b[31m\xff", "k", b"\xfe")
    turns = scene.lane()
    for message in drain(turns, keep=True):
        turns.lanes[0].dead(message, "undecodable\x07", "line one\nline two", 1)
    turns.settle()
    place = run("dead", "list", TOPIC, GROUP, "--json").data["letters"][0]["id"]

    listed, shown = run("dead", "list", TOPIC, GROUP), run("dead", "show", TOPIC, GROUP, place)

    assert "undecodable\\x07" in listed.out
    assert "\\x1b[31m\\xff" in shown.out
    assert "line one\nline two\n" in shown.out
    assert not {"\x1b", "\x07"} & set(listed.out + shown.out)
    data = run("dead", "show", TOPIC, GROUP, place, "--json").data
    assert "not JSON" in data["undecodable"]


def test_retry_counts_first_and_gives_back_with_apply(run: Run, scene: Scene) -> None:
    ids = scene.kill(3)
    command = ("dead", "retry", TOPIC, GROUP, "--all")

    plan = run(*command)
    assert plan.out.splitlines() == [
        f"Retry 3 dead letters of group {GROUP} of topic {TOPIC}.",
        "Nothing is done yet: add --apply to do it.",
    ]
    assert run(*command, "--json").data == {"planned": 3, "applied": False}
    assert len(scene.letters()) == 3

    done = run(*command, "--apply", "--json")
    assert done.code == 0
    assert done.data == {
        "planned": 3, "applied": True, "retried": 3, "copied": 0, "discarded": 0, "gone": 0, "kept": 0,
    }  # fmt: skip
    assert [message_id for message_id, _ in scene.given()] == ids
    records = AuditRecord.objects.filter(verb="retry dead letters").count()
    assert records == (1 if run.operator is Audited else 0)  # type: ignore[attr-defined]  # set by the fixture


def test_single_and_filtered_letters_are_discarded(run: Run, scene: Scene) -> None:
    scene.kill(4)
    first, *_ = (str(one.place) for one in scene.letters())

    gone = run("dead", "discard", TOPIC, GROUP, first, "0/1-1", "--apply")
    assert "Discarded: 1." in gone.out
    assert "Gone meanwhile" in gone.out
    assert run("dead", "discard", TOPIC, GROUP, "--reason", "no 3", "--since", "1h", "--apply").code == 0
    assert [one.message.value["n"] for one in scene.letters()] == [1, 2]
    assert run("dead", "discard", TOPIC, GROUP, "--partition", "0", "--key", "a", "--apply").code == 0
    assert scene.letters() == []


def test_letters_that_must_stay_are_a_failure(run: Run, scene: Scene, bus: Bus) -> None:
    scene.kill()
    bus.client.call("XGROUP", "DESTROY", scene.keys.stream, GROUP)

    result = run("dead", "retry", TOPIC, GROUP, "--all", "--apply")

    assert result.code == 1
    assert "Still dead letters" in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--apply",),
        ("0/1-1", "--all"),
        ("--all", "--key", "a"),
        ("1700-0",),
        ("--since", "yesterday"),
        ("--since", "-5d"),
        ("--since", "999999d"),
        ("--partition", "-1"),
        ("--partition", ""),
        ("--partition", "1024"),
        ("--reason", ""),
    ],
)
def test_wrong_usage_does_nothing(run: Run, scene: Scene, arguments: tuple[str, ...]) -> None:
    scene.kill()
    for verb in ("retry", "discard"):
        assert run("dead", verb, TOPIC, GROUP, *arguments).code == 2
    assert len(scene.letters()) == 1


def test_what_does_not_exist_fails_with_a_clear_text(run: Run, scene: Scene) -> None:
    assert run("dead", "list", TOPIC, "nobody").code == 1
    assert run("dead", "list", "wages", GROUP).code == 1
    missing = run("dead", "show", TOPIC, GROUP, "0/1-1")
    assert (missing.code, "no dead letter 0/1-1" in missing.err) == (1, True)
    beyond = run("dead", "retry", TOPIC, GROUP, "--partition", "9")
    assert (beyond.code, "partitions 0 to 0" in beyond.err) == (1, True)


def test_a_read_only_project_refuses_to_apply(run: Run, scene: Scene, bus: Bus) -> None:
    scene.kill()
    object.__setattr__(bus.settings, "read_only", True)

    for verb in ("retry", "discard"):
        for apply in ((), ("--apply",)):
            result = run("dead", verb, TOPIC, GROUP, "--all", *apply)
            assert (result.code, "READ_ONLY" in result.err) == (1, True)
    assert len(scene.letters()) == 1


def test_the_pending_list_is_shown(run: Run, scene: Scene, bus: Bus) -> None:
    for key in ("a", "a", "b"):
        bus.publish(TOPIC, {"of": key}, key=key)
    turns = scene.lane()
    fails, later, _ = drain(turns, keep=True)
    turns.lanes[0].retry(fails, 60, "Traceback\nValueError: no", turns.server_now())
    turns.lanes[0].hold(later)
    turns.settle()

    listed = run("pending", "list", TOPIC, GROUP)
    limited = run("pending", "list", TOPIC, GROUP, "--limit", "1", "--partition", "0")

    assert next(line.split("  ")[0] for line in listed.out.splitlines()[1:]) == f"0/{fails.id}"
    assert "ValueError: no" in listed.out
    assert "held back" in listed.out
    assert "more than 1" in limited.err
    data = run("pending", "list", TOPIC, GROUP, "--json").data
    assert [one["state"] for one in data] == ["retrying", "held back", "in hand"]
    assert (data[0]["attempts"], data[0]["key"], data[0]["value"]) == (1, "a", {"of": "a"})
    assert data[0]["due"] is not None
    assert run("pending", "list", TOPIC, GROUP, "--partition", "5").code == 1
