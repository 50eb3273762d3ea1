"""The distribution as a user gets it: built from a copy of the tree, installed into a directory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.servers import program

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bus", "workers", "admin_ui")

#: What is copied although it must not get into the wheel: its absence there would else prove nothing.
_OTHERS = ("config", "demo", "tests")


def build(directory: Path) -> Path:
    """The path of a new wheel under `directory`; no build directory is left in the tree."""
    copy = directory / "tree"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in (*PACKAGES, *_OTHERS):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory / "dist", copy)
    (path,) = (directory / "dist").glob("*.whl")
    return path


def install(wheel: Path, target: Path) -> None:
    """Install it with pip, without its dependencies and without the network."""
    pip = (sys.executable, "-m", "pip") if find_spec("pip") else (program("pip", "pip3", "pip"),)
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--target")
    _run(*pip, "install", *options, target, wheel)


def _run(*command: str | Path) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
