"""What the wheel holds: the three packages with all their files, and nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.wheel import PACKAGES, ROOT


@pytest.fixture(scope="module")
def wheel(wheel_path: Path) -> zipfile.Path:
    """What the built wheel holds."""
    return zipfile.Path(wheel_path)


def members(wheel: zipfile.Path) -> set[str]:
    return {name for name in wheel.root.namelist() if not name.endswith("/")}


def files(pattern: str) -> set[str]:
    """Files of the three packages in the tree, as the wheel names them."""
    found = (path for package in PACKAGES for path in (ROOT / package).glob(pattern) if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_three_packages_only(wheel: zipfile.Path) -> None:
    tops = {name.partition("/")[0] for name in members(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.parametrize(
    "pattern",
    ["**/*.py", "**/*.lua", "**/migrations/*.py", "**/templates/**/*", "**/static/**/*"],
    ids=["modules", "scripts", "migrations", "templates", "static files"],
)
def test_the_wheel_holds_every_file_of_a_kind(wheel: zipfile.Path, pattern: str) -> None:
    expected = files(pattern)
    assert expected, f"the tree has no {pattern}: is the test looking in the right place?"
    assert expected <= members(wheel)


def test_each_package_says_that_it_is_typed(wheel: zipfile.Path) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= members(wheel)


def test_the_wheel_names_its_licence_extras_and_command(wheel: zipfile.Path) -> None:
    texts = {name.rpartition("/")[2]: name for name in members(wheel) if ".dist-info/" in name}
    metadata = (wheel / texts["METADATA"]).read_text()
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.11" in metadata
    for extra in ("embedded", "server", "cli"):
        assert f"Provides-Extra: {extra}" in metadata
    assert "LICENSE" in texts
    assert "jitney = bus.cli:main" in (wheel / texts["entry_points.txt"]).read_text()
