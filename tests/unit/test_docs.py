"""The documents say what is there, and all of it: names, settings, commands, errors, links."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import click
import pytest

import bus
from bus import conf, errors, testrun
from bus.cli.tree import root

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]

FOLDERS = (
    "bus",
    "workers",
    "admin_ui",
    "config",
    "demo",
    "examples",
    "benchmarks",
    "docs",
    "scripts",
    "tests",
)

SCRIPTS = {path.name for path in (ROOT / "bus/streams/scripts").glob("*.lua")}


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def section(name: str, title: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level, rest = re.search(rf"^(#+) {re.escape(title)}\n(.*)", text_of(name), re.M | re.S).groups()
    return re.split(rf"^#{{1,{len(level)}}} ", rest, flags=re.M)[0]


def tables(text: str) -> list[list[list[str]]]:
    """Tables as rows of cells, without their titles."""
    found = re.findall(r"^\|.*\|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.M)
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in body.split("\n")[:-1]]
            for body in found]  # fmt: skip


def codes(cell: str) -> list[str]:
    """What stands between backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


# ---------------------------------------------------------------------- the reference tables


def test_the_settings_table_has_every_setting_with_its_default() -> None:
    documented = {
        codes(row[0])[0]: row[1]
        for row in tables(section("docs/reference/settings.md", "The BUS setting"))[0]
    }
    assert documented == {field.name.upper(): _default(field) for field in fields(conf.Settings)}


def _default(field: Field[Any]) -> str:
    value = field.default
    if value is MISSING:
        return "required"
    if value is None or isinstance(value, bool):
        return {None: "none", False: "no", True: "yes"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_table_of_environment_variables_has_those_of_the_settings_file() -> None:
    (rows,) = tables(section("docs/reference/settings.md", "Environment variables"))
    documented = {name for row in rows for name in codes(row[0])}
    described = re.findall(
        r"^([A-Z_]+) ", inspect.getdoc(importlib.import_module("config.settings")) or "", re.M
    )
    read = re.findall(r'"(BUS_[A-Z_]+)"', inspect.getsource(conf) + inspect.getsource(testrun))
    assert documented == {*described, *read}


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from leaves(below, (*path, name))
    else:
        yield " ".join(path), command


def test_the_table_of_commands_has_every_command_with_its_options() -> None:
    rows = tables(section("docs/reference/cli.md", "Commands"))[0]
    documented = {_words(codes(row[0])[0]): set(codes(row[1])) for row in rows}
    assert documented == {path: _options(command) for path, command in leaves(root)}


def _words(usage: str) -> str:
    return " ".join(word for word in usage.split() if not word.isupper())


def _options(command: click.Command) -> set[str]:
    """One spelling of each option: the long one, where there is one."""
    options = (param for param in command.params if isinstance(param, click.Option))
    return {max(param.opts, key=len) for param in options} - {"--json"}


def test_the_table_of_errors_has_every_error() -> None:
    documented = [codes(row[0])[0] for row in tables(section("docs/reference/api.md", "Errors"))[0]]
    classes = [name for name, value in vars(errors).items() if inspect.isclass(value)]
    assert sorted(documented) == sorted(
        name for name in classes if vars(errors)[name].__module__ == "bus.errors"
    )


def test_the_table_of_the_api_has_every_public_name() -> None:
    documented = [codes(row[0])[0] for row in tables(section("docs/reference/api.md", "Names"))[0]]
    assert sorted(documented) == sorted(bus.__all__)


def test_the_table_of_system_checks_has_every_id() -> None:
    documented = set(re.findall(r"jitney\.[EW]\d{3}", section("docs/operations.md", "System checks")))
    sources = [path.read_text() for package in ("bus", "workers") for path in (ROOT / package).rglob("*.py")]
    assert documented == {
        found for source in sources for found in re.findall(r'"(jitney\.[EW]\d{3})"', source)
    }


def test_every_known_failure_has_its_answer() -> None:
    numbers = re.findall(r"^(\d+)\. \*\*", section("docs/delivery.md", "Known failures, one by one"), re.M)
    assert [int(number) for number in numbers] == list(range(1, 40))


def test_every_folder_stands_in_the_architecture() -> None:
    named = {
        code.rstrip("/") for code in codes(section("docs/architecture.md", "The house")) if code.endswith("/")
    }
    packages = {path.parent for path in ROOT.glob("*/__init__.py")} | {ROOT / "examples", ROOT / "docs"}
    floors = {path.parent for name in ("bus", "workers") for path in (ROOT / name).glob("*/__init__.py")}
    folders = {path.relative_to(ROOT).as_posix() for path in packages | floors}
    assert folders - named == set()
    assert [name for name in sorted(named) if not (ROOT / name).is_dir()] == []


def test_the_way_of_one_message_names_files_and_what_is_in_them() -> None:
    text = section("docs/architecture.md", "The way of one message")
    lines = [line for line in text.splitlines() if line]
    assert 30 <= len(lines) <= 40
    file, looked_up, missing = ROOT, 0, []
    for code in re.findall(r"`([^`]+)`", " ".join(lines)):
        if "/" in code:
            file = ROOT / code
            missing += [] if file.is_file() else [code]
        elif code.endswith(".lua"):
            missing += [] if code in SCRIPTS else [code]
        elif code not in OUTSIDE:
            looked_up += 1
            missing += [] if code in _defined(file) else [f"{file.name}: {code}"]
    assert missing == []
    assert looked_up > 25


#: Words of the way of one message that are not in the file named before them: what users write.
OUTSIDE = {"message_id", "delay", "Reject"}


def _defined(file: Path) -> set[str]:
    """Functions, classes, and their methods: `run`, `Slice`, `Slice.run`."""
    if file.suffix != ".py":
        return set()
    body = ast.parse(file.read_text()).body
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    names = {node.name for node in body if isinstance(node, definitions)}
    return names | {
        f"{node.name}.{inner.name}"
        for node in body
        if isinstance(node, ast.ClassDef)
        for inner in node.body
        if isinstance(inner, definitions)
    }


def test_every_decision_has_its_context_and_its_consequence() -> None:
    records = re.split(r"^### ", text_of("docs/decisions.md"), flags=re.M)[1:]
    assert len(records) > 50
    told = {record.splitlines()[0]: re.findall(r"^- \*\*(\w+)\.\*\*", record, re.M) for record in records}
    parts = ["Context", "Decision", "Consequence"]
    assert [title for title, words in told.items() if words not in (parts, [*parts, "Measured"])] == []


def test_nothing_refers_to_a_paper_that_readers_cannot_open() -> None:
    files = [*ROOT.glob("*.md"), *ROOT.glob("*.toml")]
    for folder in FOLDERS:
        files += [file for kind in ("*.py", "*.lua", "*.md") for file in (ROOT / folder).rglob(kind)]
    assert len(files) > 300
    paper = re.compile(r"\b(the|this|our|by) [d]esign\b|\b[D]ESIGN\b")
    assert [file for file in files if paper.search(file.read_text())] == []


# ---------------------------------------------------------------------- what is named exists


@pytest.mark.parametrize("name", NAMES)
def test_dotted_names_exist(name: str) -> None:
    dotted = re.findall(r"`((?:bus|workers|admin_ui)(?:\.\w+)+)`", without_blocks(text_of(name)))
    missing = [each for each in sorted(set(dotted)) if not _exists(each)]
    assert missing == []


def _exists(dotted: str) -> bool:
    """A module or what is in it; `bus.topic` and the like are names of the module `bus`."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_paths_and_scripts_exist(name: str) -> None:
    named = {code for code in codes(without_blocks(text_of(name))) if re.fullmatch(r"[\w./-]+", code)}
    paths = {each for each in named if "/" in each and each.rpartition(".")[2] in ("py", "md", "lua", "txt")}
    scripts = {each for each in named if each.endswith(".lua") and "/" not in each}
    assert [each for each in sorted(paths) if not _path_exists(each)] == []
    assert sorted(scripts - SCRIPTS) == []


def _path_exists(path: str) -> bool:
    # The document's readers know that `shop/` is theirs.
    return path.startswith("shop/") or (ROOT / path).exists()


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", without_blocks(text_of(name)))
    broken = [target for target in targets if not target.startswith("http") and not _leads(name, target)]
    assert broken == []


def _leads(name: str, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = Path(os.path.normpath((ROOT / name).parent / path)) if path else ROOT / name
    if not file.exists():
        return False
    return not anchor or anchor in {
        _anchor(title) for title in re.findall(r"^#+ (.+)$", file.read_text(), re.M)
    }


def _anchor(title: str) -> str:
    """As code hosts make it of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_make_and_the_bus_exist(name: str) -> None:
    text = text_of(name)
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.M))
    assert set(re.findall(r"(?:^|[^`]`)make ([a-z]+)", text, re.M)) <= targets
    known = {path for path, _ in leaves(root)}
    for words in re.findall(r"(?:`|manage\.py |^|\s{5,})bus ([a-z]+(?:\s[a-z]+)?)", text, re.M):
        told = words.split()
        assert {" ".join(told), told[0]} & known, f"bus {words}"


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_python_can_be_compiled(name: str) -> None:
    for example in re.findall(r"^```python\n(.*?)^```", text_of(name), re.M | re.S):
        compile(example, name, "exec")


def test_the_readme_has_130_lines_at_most() -> None:
    assert len(text_of("README.md").splitlines()) <= 130


def test_the_first_example_of_the_readme_has_twelve_lines_at_most() -> None:
    example = re.search(r"^```python\n(.*?)^```", text_of("README.md"), re.M | re.S)[1]
    lines = [line for line in example.splitlines() if line and not line.startswith("# anywhere")]
    assert len(lines) <= 12
    assert (ROOT / "docs/lag.png").stat().st_size > 10_000
