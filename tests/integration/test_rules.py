"""The access rules of docs/security.md allow every command that the code and the scripts can send."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.streams.commands import Client, script
from tests.acls import rules

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "bus/streams/scripts"

#: What is not sent to the server of the bus, or not under the user of the rules.
ELSEWHERE = {
    "auth": "any user may log in",
    "ping": "is asked of embedded servers alone, which have no users",
    "readonly": "is the name of an error, in a list of such",
    "config|get": "the document says that it is never needed",
}
#: The scripts of each role that may not do all that a worker may.
PUBLISHERS = {"once.lua", "delay.lua"}


@pytest.fixture
def known(client: Client) -> set[str]:
    """Every command of this server; where it has subcommands, as "xgroup|create"."""
    return {name.decode().lower() for name in client.call("COMMAND", "LIST")}


@pytest.fixture
def category(client: Client) -> set[str]:
    """@read."""
    return {name.decode().lower() for name in client.call("ACL", "CAT", "read")}


def allowed(role: str, read: set[str]) -> set[str]:
    """The commands that a role may send, to any key."""
    granted: set[str] = set()
    for word in re.findall(r"[+-]\S+", " ".join(rules(role)).replace(")", " ")):
        names = read if word[1:] == "@read" else {word[1:]}
        granted = granted | names if word[0] == "+" else granted - names
    return granted


def commands_of_script(path: Path) -> set[str]:
    found = set()
    code = re.sub(r"--.*", "", script(path.stem).text.decode())
    for name, second in re.findall(r"redis\.p?call\(\s*'(\w+)'(?:\s*,\s*'([\w-]+)')?", code):
        found.add(name if name not in ("XGROUP", "XINFO") else f"{name}|{second}")
    # No call whose command is not a literal, which this test could not see.
    assert len(re.findall(r"redis\.p?call\(", code)) == len(re.findall(r"redis\.p?call\(\s*'", code)), path
    return {name.lower() for name in found}


def commands_of_code(path: Path, known: set[str]) -> Iterator[str]:
    """What begins a tuple, a list or a call and is the name of a command; and what is packed by hand."""
    source = path.read_text()
    containers = {name.split("|")[0] for name in known if "|" in name}
    for node in ast.walk(ast.parse(source)):
        words = node.elts if isinstance(node, ast.Tuple | ast.List) else getattr(node, "args", None)
        if not isinstance(words, list) or not words:
            continue
        first, second = (_text(each) for each in (*words, ast.Constant(None))[:2])
        name = (first or "").lower()
        if name not in known or first != name.upper():
            continue
        yield f"{name}|{(second or '?').lower()}" if name in containers else name
    packed = re.findall(r"\\r\\n([A-Z]{3,})\\r\\n", source)
    yield from (name.lower() for name in packed if name.lower() in known)


def _text(node: ast.AST) -> str | None:
    value = getattr(node, "value", None)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None


@pytest.mark.both_servers
def test_a_worker_may_send_every_command_of_all_scripts(known: set[str], category: set[str]) -> None:
    granted = allowed("worker", category)
    scripts = sorted(SCRIPTS.glob("*.lua"))
    assert len(scripts) > 20
    refused = {path.name: sorted(commands_of_script(path) - granted) for path in scripts}
    assert not {name: names for name, names in refused.items() if names}


@pytest.mark.both_servers
def test_a_publisher_may_send_every_command_of_its_scripts(category: set[str]) -> None:
    granted = allowed("publisher", category)
    for name in PUBLISHERS:
        assert commands_of_script(SCRIPTS / name) - granted == set(), name


@pytest.mark.both_servers
def test_a_worker_may_send_every_command_of_the_code(known: set[str], category: set[str]) -> None:
    granted = allowed("worker", category) | set(ELSEWHERE)
    refused: dict[str, set[str]] = {}
    sent: set[str] = set()
    for folder in ("bus", "workers", "admin_ui"):
        for path in (ROOT / folder).rglob("*.py"):
            found = set(commands_of_code(path, known))
            sent |= found
            if found - granted:
                refused[str(path.relative_to(ROOT))] = found - granted
    assert {"xadd", "xreadgroup", "xack", "watch", "multi", "exec", "evalsha"} <= sent  # it does see them
    assert refused == {}
    assert set(ELSEWHERE) <= sent, "no longer sent: take it out of the list"


@pytest.mark.both_servers
def test_no_rule_grants_a_write_that_nothing_sends(known: set[str], category: set[str]) -> None:
    sent = set().union(*(commands_of_script(path) for path in SCRIPTS.glob("*.lua")))
    for folder in ("bus", "workers", "admin_ui"):
        for path in (ROOT / folder).rglob("*.py"):
            sent |= set(commands_of_code(path, known))
    for role in ("worker", "publisher", "plain", "viewer"):
        assert allowed(role, category) - category - sent == set(), role


@pytest.mark.both_servers
def test_what_a_viewer_may_send_writes_nothing(client: Client, category: set[str]) -> None:
    writes = {name.decode().lower() for name in client.call("ACL", "CAT", "write")}
    assert allowed("viewer", category) & writes == set()
