"""The command line: the same tree in a Django project and without one."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from bus import topic as declared
from bus.cli.audited import Audited
from bus.cli.direct import Direct
from bus.client import Bus
from bus.errors import ConfigurationError
from bus.models import AuditRecord, Topic
from bus.streams.embedded import EmbeddedServer
from bus.topics.registry import GroupSpec
from bus.values import TopicSpec
from tests.integration.commandline import Run
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def manage(bus: Bus, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command as `manage.py bus` does."""
    return Run(bus, Audited, capsys)


@pytest.fixture
def jitney(bus: Bus, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command as `jitney` does."""
    return Run(bus, Direct, capsys)


def values(bus: Bus, topic: str) -> list[Any]:
    from bus import observe

    return [message.value for message in reversed(observe.latest(bus, topic, 10_000))]


# ---------------------------------------------------------------------- topics


def test_a_topic_is_created_listed_described_changed_and_deleted(manage: Run, bus: Bus) -> None:
    # when it is created, and used
    created = manage("topic", "create", "wages", "--partitions", "2", "--retention", "7d", "--notes", "Ada's")
    manage("publish", "wages", '{"n": 1}', "--key", "a", "--header", "tenant=de")

    # then it is listed and described
    assert created.code == 0
    assert Topic.objects.get(name="wages").origin == "cli"
    assert manage("topics").out.splitlines()[1].split()[:4] == ["wages", "2", "1", "7d"]
    assert manage("topic", "list", "--json").data[0]["messages"] == 1
    described = manage("topic", "describe", "wages", "--json").data
    assert described["topic"]["retention"] == 7 * 86400
    assert described["notes"] == "Ada's"
    assert len(described["partitions"]) == 2
    assert "from the command line" in manage("topic", "describe", "wages").out

    # and a change and a deletion show a plan first
    change = ("topic", "change", "wages", "--partitions", "4", "--retention", "forever")
    assert "add --apply" in manage(*change).out
    assert bus.registry.specs()["wages"].partitions == 2
    assert manage(*change, "--apply").code == 0
    assert bus.registry.specs()["wages"].partitions == 4
    assert "1 messages" in manage("topic", "delete", "wages").out
    assert manage("topic", "delete", "wages", "--apply", "--confirm", "wages").code == 0
    assert bus.registry.specs() == {}
    assert list(AuditRecord.objects.order_by("pk").values_list("verb", flat=True)) == [
        "create topic",
        "change topic",
        "delete topic",
    ]


def test_deleting_a_topic_without_its_name_is_wrong_usage_and_with_another_name_fails(
    manage: Run, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    manage("topic", "create", "wages")

    assert manage("topic", "delete", "wages", "--apply").code == 2
    assert manage("topic", "delete", "wages", "--apply", "--confirm", "sages").code == 1
    assert "wages" in bus.registry.specs()


@pytest.mark.parametrize("name", [".", ".."])
def test_a_name_that_cannot_have_a_page_is_not_created_and_what_has_it_already_works(
    manage: Run, jitney: Run, bus: Bus, name: str
) -> None:
    manage("topic", "create", "wages")
    for run in (manage, jitney):
        for created in (run("topic", "create", name), run("group", "create", "wages", name)):
            assert created.code == 1
            assert f"{name!r} cannot be created" in created.err
        bus.registry.project([TopicSpec(name=name)])
        bus.registry.declare_groups([GroupSpec(topic=name, name=name)])

        assert run("publish", name, "1").code == 0
        assert run("group", "pause", name, name).code == 0
        assert run("group", "describe", name, name).code == 0
        assert run("topic", "list", "--json").code == 0
        assert run("group", "delete", name, name, "--apply").code == 0
        assert run("topic", "delete", name, "--apply", "--confirm", name).code == 0
    with pytest.raises(ConfigurationError, match="cannot be created"):
        bus.topic(name)
    with pytest.raises(ConfigurationError, match="cannot be created"):
        declared(name)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["topic", "create", "two words"], "not a valid name"),
        (["topic", "create", "wages", "--partitions", "0"], "1<=x<=1024"),
        (["topic", "create", "wages", "--partitions", "1025"], "1<=x<=1024"),
        (["topic", "create", "wages", "--retention", "soon"], "not a duration"),
        (["topic", "change", "wages"], "Nothing to change"),
        (["group", "create", "wages", "g", "--start", "soon"], "not a position"),
        (["group", "create", "wages", "g", "--ordering", "random"], "random"),
        (["publish", "wages"], "either a VALUE or --file"),
        (["publish", "wages", "1", "--file", os.devnull], "either a VALUE or --file"),
        (["publish", "wages", "1", "--header", "tenant"], "name=value"),
        (["publish", "wages", "{oops"], "begins like JSON"),
        (["publish", "wages", "--file", "no-such-file.csv"], "No such file"),
        (["publish", "wages", "--file", os.devnull, "--key", "a", "--key-field", "b"], "either --key"),
        (["nonsense"], "No such command"),
    ],
)
def test_wrong_usage_says_what_is_wrong_and_ends_with_2(manage: Run, arguments: list[str], text: str) -> None:
    result = manage(*arguments)

    assert result.code == 2
    assert text in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["publish", "nope", "1"],
        ["tail", "nope"],
        ["topic", "describe", "nope"],
        ["topic", "delete", "nope"],
        ["groups", "nope"],
        ["group", "describe", "nope", "g"],
        ["group", "pause", "nope", "g"],
    ],
)
def test_a_topic_that_is_not_there_is_an_error_on_stderr(manage: Run, arguments: list[str]) -> None:
    result = manage(*arguments)

    assert result.code == 1
    assert "There is no topic 'nope'" in result.err
    assert result.out == ""


def test_sync_stores_what_code_declares_and_drift_is_told_before(manage: Run, bus: Bus) -> None:
    bus.topic("orders-of-code", partitions=2)

    before = manage("topics")
    synced = manage("topic", "sync", "--json")
    after = manage("topics")

    assert "the database does not have it" in before.err
    assert synced.data["created"] == ["orders-of-code"]
    assert after.err == ""
    assert "orders-of-code" in after.out


def test_without_django_a_topic_is_in_redis_only_and_that_is_said(jitney: Run, bus: Bus) -> None:
    created = jitney("topic", "create", "wages", "--partitions", "2")

    assert created.code == 0
    assert "Redis only" in created.err
    assert bus.registry.specs()["wages"].partitions == 2
    assert not Topic.objects.exists()
    assert jitney("topic", "create", "wages").code == 1
    assert jitney("topic", "create", "other", "--notes", "x").code == 2
    assert jitney("topic", "sync").code == 2
    assert jitney("topic", "change", "wages", "--partitions", "3", "--apply").code == 0
    assert jitney("topic", "change", "wages", "--partitions", "1", "--apply").code == 1
    assert jitney("topic", "delete", "wages", "--apply", "--confirm", "wages").code == 0
    assert bus.registry.specs() == {}


# ---------------------------------------------------------------------- publish


@pytest.mark.parametrize(
    ("text", "value"), [('{"n": 1}', {"n": 1}), ("7", 7), ("hello you", "hello you"), ("null", None)]
)
def test_a_value_is_json_or_else_text(manage: Run, bus: Bus, text: str, value: Any) -> None:
    bus.topic("wages")

    receipt = manage("publish", "wages", text, "--json").data

    assert receipt["topic"] == "wages"
    assert values(bus, "wages") == [value]


def test_a_csv_file_is_published_line_by_line_with_keys(manage: Run, bus: Bus, tmp_path: Path) -> None:
    bus.topic("wages", partitions=4)
    file = tmp_path / "wages.csv"
    file.write_text("who,euros\n" + "".join(f"w{n % 7},{n}\n" for n in range(1200)))

    result = manage("publish", "wages", "--file", str(file), "--key-field", "who", "--header", "run=1")

    assert (result.code, result.out) == (0, "Published 1,200 messages.\n")
    from bus import observe

    messages = observe.latest(bus, "wages", 2000)
    assert len(messages) == 1200
    assert all(message.key == message.value["who"] for message in messages)
    assert messages[0].headers == {"run": "1"}


@pytest.mark.parametrize("before", [0, 3, 700])
def test_a_malformed_line_is_named_and_all_lines_before_it_are_published(
    manage: Run, bus: Bus, tmp_path: Path, before: int
) -> None:
    bus.topic("wages")
    file = tmp_path / "wages.jsonl"
    file.write_text("".join(f"{n}\n" for n in range(before)) + "{oops\n" + "99\n")

    result = manage("publish", "wages", "--file", str(file))

    assert result.code == 1
    assert f"line {before + 1}" in result.err
    assert f"Published before it: {before} message" in result.err
    assert values(bus, "wages") == list(range(before))


@pytest.mark.parametrize(
    ("line", "text"),
    [('{"b": 1}', "no field 'a'"), ("[1]", "no field 'a'"), (f'{{"a": "{"x" * 200}"}}', "at most")],
)
def test_a_line_that_cannot_be_a_message_is_named_too(
    server: EmbeddedServer,
    prefix: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    line: str,
    text: str,
) -> None:
    bus = Bus(server.url, prefix=prefix, max_message_bytes=100)
    bus.topic("wages")
    file = tmp_path / "wages.jsonl"
    file.write_text(f'{{"a": 1}}\n{line}\n')

    result = Run(bus, Direct, capsys)("publish", "wages", "--file", str(file), "--key-field", "a")

    assert result.code == 1
    assert "line 2" in result.err
    assert text in result.err
    assert values(bus, "wages") == [{"a": 1}]


# ---------------------------------------------------------------------- groups, tail, workers, doctor


def test_groups_are_created_described_paused_and_deleted(manage: Run, bus: Bus) -> None:
    bus.topic("wages", partitions=2)
    bus.publish_many("wages", range(5))

    assert manage("group", "create", "wages", "payroll", "--ordering", "partition").code == 0
    assert manage("group", "create", "wages", "payroll").code == 1
    assert manage("groups").out.splitlines()[1].split()[:5] == ["wages", "payroll", "partition", "-", "5"]
    assert manage("groups", "wages", "--json").data[0]["lag"] == {"count": 5, "exact": True}
    described = manage("group", "describe", "wages", "payroll", "--json").data
    assert [one["offset"] for one in described["partitions"]] == [0, 0]
    assert manage("group", "pause", "wages", "payroll").code == 0
    assert "paused" in manage("group", "describe", "wages", "payroll").out
    assert manage("group", "resume", "wages", "payroll").code == 0
    assert "lag 5" in manage("group", "delete", "wages", "payroll").out
    assert len(bus.registry.groups()) == 1
    assert manage("group", "delete", "wages", "payroll", "--apply").code == 0
    assert bus.registry.groups() == []


def test_tail_shows_the_newest_messages_with_the_oldest_of_them_first(manage: Run, bus: Bus) -> None:
    bus.topic("wages", partitions=2)
    bus.publish_many("wages", range(20), key=str)

    everything = [json.loads(line) for line in manage("tail", "wages", "-n", "50", "--json").out.splitlines()]
    last = manage("tail", "wages", "-n", "3").out.splitlines()
    one = [
        json.loads(line) for line in manage("tail", "wages", "--partition", "1", "--json").out.splitlines()
    ]

    assert sorted(message["value"] for message in everything) == list(range(20))
    assert len(last) == 3
    assert {message["partition"] for message in one} == {1}
    assert manage("tail", "wages", "--partition", "2").code == 2


def test_tail_shows_what_is_no_message_and_escapes_what_steers_a_terminal(manage: Run, bus: Bus) -> None:
    bus.topic("wages")
    bus.publish("wages", b"\x1b[2Jraw", key="\x1b[31m")
    bus.client.call("XADD", bus.keys.partition("wages", 0).stream, "*", "foreign", "1")

    result = manage("tail", "wages")
    records = [json.loads(line) for line in manage("tail", "wages", "--json").out.splitlines()]

    assert result.code == 0
    assert "\x1b" not in result.out
    assert "undecodable" in result.out
    assert "value_base64" in records[0]
    assert "no field 'v'" in records[1]["undecodable"]


def test_workers_and_doctor_answer_in_tables_and_json(manage: Run) -> None:
    assert manage("workers", "--json").data == []
    assert manage("workers").out.startswith("worker")
    assert {"reachable", "eviction"} <= {finding["check"] for finding in manage("doctor", "--json").data}
    assert manage("doctor").code == 0


def test_what_is_unknown_is_shown_as_unknown(manage: Run, bus: Bus) -> None:
    bus.topic("wages", partitions=2)
    manage("group", "create", "wages", "payroll")
    bus.client.call("DEL", bus.keys.partition("wages", 0).stream)

    assert "missing in Redis" in manage("topic", "describe", "wages").out
    assert "unknown" in manage("group", "describe", "wages", "payroll").out


# ---------------------------------------------------------------------- the server, and real processes


def test_the_embedded_server_is_started_looked_at_and_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(Bus(f"embedded://{tmp_path}/server"), Direct, capsys)
    try:
        assert run("server", "status").code == 1
        assert run("topics").code == 1  # nothing starts it unasked
        started = run("server", "start", "--json")
        status = run("server", "status", "--json")
        assert (started.code, status.code) == (0, 0)
        assert status.data["socket"] == started.data["socket"]
        assert run("topics").code == 0
    finally:
        stopped = run("server", "stop", "--json")
    assert stopped.data == {"running": False, "ran": True}
    assert run("server", "stop", "--json").data["ran"] is False


def test_a_server_of_its_own_is_not_started_from_here(manage: Run) -> None:
    result = manage("server", "start")

    assert result.code == 1
    assert "embedded://" in result.err


WITHOUT_DJANGO = """
import sys
from bus.cli import main
code = main()
assert "django.apps" not in sys.modules
sys.exit(code)
"""


@contextmanager
def jitney_process(
    server: EmbeddedServer, prefix: str, arguments: Sequence[str], **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """`jitney` in a process that knows no Django settings, and that does not outlive the block."""
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    environment |= {"BUS_URL": server.url, "BUS_PREFIX": prefix, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT_DJANGO, *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def test_jitney_works_in_a_process_without_django(server: EmbeddedServer, prefix: str, bus: Bus) -> None:
    with jitney_process(server, prefix, ["topic", "create", "wages"]) as process:
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 0, errors
    assert "Redis only" in errors
    assert list(bus.registry.specs()) == ["wages"]


@pytest.mark.parametrize(
    ("redirection", "told"),
    [("| true", "Broken pipe"), (">/dev/full", "No space left on device"), (">&-", "no standard output")],
)
@pytest.mark.parametrize("arguments", ["topics", "topics --json", "tail wages -n 20000"])
def test_an_answer_that_cannot_be_written_is_one_line_and_exit_code_1(
    server: EmbeddedServer, prefix: str, bus: Bus, redirection: str, told: str, arguments: str
) -> None:
    # given more than a pipe holds
    bus.registry.project([TopicSpec(name="wages"), *(TopicSpec(name=f"t{n}" * 30) for n in range(10))])
    bus.publish_many("wages", ("x" * 100 for _ in range(20_000 if "tail" in arguments else 10)))
    # when it is written to somebody who does not read it, or cannot keep it
    program = f"{sys.executable} -m bus.cli {arguments}"
    # The reader is gone before the first byte is written.
    script = (
        f"(sleep 0.3; exec {program}; ) {redirection}" if "|" in redirection else f"{program} {redirection}"
    )
    run = subprocess.run(
        ["bash", "-c", f"{script}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        env={**os.environ, "BUS_URL": server.url, "BUS_PREFIX": prefix, "DJANGO_SETTINGS_MODULE": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # then that is said, in one line, and nothing else
    assert run.returncode == 1, run.stderr
    assert told in run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr


def test_lines_of_a_pipe_are_published_as_they_come(server: EmbeddedServer, prefix: str, bus: Bus) -> None:
    bus.registry.project([TopicSpec(name="wages")])
    with jitney_process(server, prefix, ["publish", "wages", "--file", "-"]) as process:
        process.stdin.write('{"n": 1}\n')
        process.stdin.flush()
        wait_until(lambda: values(bus, "wages") == [{"n": 1}], what="the first line")
        process.stdin.write('{"n": 2}\n')
        out, errors = process.communicate(timeout=60)

    assert (process.returncode, out) == (0, "Published 2 messages.\n"), errors
    assert values(bus, "wages") == [{"n": 1}, {"n": 2}]


def test_tail_follows_until_ctrl_c_and_shows_every_message_once(
    server: EmbeddedServer, prefix: str, bus: Bus
) -> None:
    # given a tail that shows the last two of three messages
    bus.topic("wages", partitions=2)
    bus.publish_many("wages", range(3), key=str)
    with jitney_process(server, prefix, ["tail", "wages", "-n", "2", "--follow", "--json"]) as process:
        shown = [json.loads(process.stdout.readline())["value"] for _ in range(2)]

        # when more are published
        bus.publish_many("wages", range(3, 40), key=str)
        shown += [json.loads(process.stdout.readline())["value"] for _ in range(37)]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)

    # then each came once, and Ctrl-C is the way to end it
    assert sorted(shown[2:]) == list(range(3, 40))
    assert rest == ""
    assert process.returncode == 0, errors


def test_without_bus_url_jitney_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from bus import cli

    monkeypatch.delenv("BUS_URL", raising=False)
    monkeypatch.setattr(sys, "argv", ["jitney", "topics"])

    assert cli.main() == 1
    assert "BUS_URL is not set" in capsys.readouterr().err


def test_without_click_the_command_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bus import cli

    # The import below puts another package there, which must not outlive this test.
    monkeypatch.setattr(sys.modules["bus"], "cli", cli)
    for name in [name for name in sys.modules if name.startswith(("bus.cli", "bus.terminal"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "click", None)

    with pytest.raises(ModuleNotFoundError) as missing:
        import click  # noqa: F401 - shows what a missing package raises
    assert missing.value.name == "click"
    assert cli.main() == 1
    assert "jitney[cli]" in capsys.readouterr().err


def test_redis_away_is_an_error_within_the_timeout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    run = Run(Bus(f"unix://{tmp_path}/nobody.sock"), Audited, capsys)

    for arguments in (["topics"], ["publish", "wages", "1"], ["topic", "create", "wages"], ["doctor"]):
        result = run(*arguments)
        assert result.code == 1
    assert time.monotonic() - begun < 20


def test_the_management_command_runs_the_tree(
    settings, server: EmbeddedServer, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.BUS = {"URL": server.url, "PREFIX": prefix}

    call_command("bus", "topic", "create", "wages", "--json")
    with pytest.raises(SystemExit) as ended:
        call_command("bus", "topic", "create", "wages")

    assert json.loads(capsys.readouterr().out.strip())["topic"] == "wages"
    assert ended.value.code == 1
    assert Topic.objects.get().origin == "cli"
