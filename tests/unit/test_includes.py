"""Scripts are put together from what they include when they are loaded."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files

import pytest

from bus.streams.commands import script

FOLDER = files("bus.streams").joinpath("scripts")
TEXTS = {path.name.removesuffix(".lua"): path.read_text() for path in FOLDER.iterdir() if path.is_file()}
SHARED = {path.name.removesuffix(".lua"): path.read_text() for path in FOLDER.joinpath("lib").iterdir()}

#: They add messages: without flags the server refuses their first write while memory is full.
WITHOUT_FLAGS = {"once", "delay", "move"}


@pytest.mark.parametrize("name", TEXTS)
def test_a_script_is_its_text_with_what_it_includes(name: str) -> None:
    expected = TEXTS[name]
    for shared, text in SHARED.items():
        expected = expected.replace(f"-- @include {shared}\n", text)
    assert "@include" not in expected, "includes what is not in lib/"
    loaded = script(name)
    assert loaded.text.decode() == expected
    assert loaded.sha == hashlib.sha1(loaded.text, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("name", TEXTS)
def test_the_line_with_the_flags_stays_the_first(name: str) -> None:
    assert script(name).text.startswith(b"#!lua flags=") == (name not in WITHOUT_FLAGS)


def test_what_is_shared_is_one_function_that_several_scripts_include() -> None:
    for shared, text in SHARED.items():
        assert re.findall(r"^local function (\w+)", text, re.MULTILINE) == [shared]
        users = [name for name, own in TEXTS.items() if f"-- @include {shared}\n" in own]
        assert len(users) > 1, f"{shared} belongs into the script that uses it"


def test_a_script_uses_what_it_includes_and_includes_it_once() -> None:
    for name, text in TEXTS.items():
        included = re.findall(r"^-- @include (\w+)$", text, re.MULTILINE)
        assert len(included) == len(set(included)), name
        for shared in included:
            assert re.search(rf"\b{shared}\(", text.partition(f"-- @include {shared}\n")[2]), (name, shared)


def test_no_function_is_written_twice() -> None:
    functions: dict[str, str] = {}
    for name, text in (*TEXTS.items(), *SHARED.items()):
        for body in re.findall(r"^(local function \w+\(.*?^end)$", text, re.MULTILINE | re.DOTALL):
            assert functions.setdefault(body, name) == name, f"{functions[body]} and {name}: {body}"
