"""What stands in the project's root, and what is never committed."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Whatever else is needed finds its place in one of these folders.
MAY_STAND_THERE = {
    # the packages of the wheel; the project around them
    "bus", "workers", "admin_ui",
    "config", "demo", "examples", "benchmarks", "tests", "docs", "scripts", ".ci",
    "manage.py", "Makefile", "pyproject.toml", "requirements.txt", "requirements-dev.txt",
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", ".gitignore",
}  # fmt: skip
#: What is built or downloaded: packages, libraries, archives.
NEVER = (".whl", ".egg", ".so", ".pyc", ".zip", ".gz")
#: Bytes of the largest file that may be committed; the picture of README.md is the largest that is.
LARGEST = 1 << 20


def committed() -> list[str]:
    """Paths of what is committed, or would be by `git add .`."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.split("\0") if path and (ROOT / path).is_file()]


def test_nothing_stands_in_the_root_but_what_belongs_there() -> None:
    assert {path.partition("/")[0] for path in committed()} - MAY_STAND_THERE == set()


def test_nothing_that_is_built_is_committed() -> None:
    assert [path for path in committed() if path.endswith(NEVER)] == []
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"*.whl", "build/", "dist/"} <= set(ignored)


def test_nothing_large_is_committed() -> None:
    assert [path for path in committed() if (ROOT / path).stat().st_size > LARGEST] == []


#: What is read as text by people who mend it, and how long a line of it may be.
SOURCES, LONGEST = (".py", ".html", ".css", ".js", ".lua"), 160


def test_no_line_of_a_source_is_too_long_to_read() -> None:
    long = [
        f"{path}:{number}"
        for path in committed()
        if path.endswith(SOURCES)
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if len(line) > LONGEST
    ]
    assert long == []


#: Modules in a folder, `__init__` and `__main__` not counted: more are too many to see at a glance.
MODULES = 18


def test_no_folder_holds_too_many_modules() -> None:
    folders = Counter(
        path.rpartition("/")[0]
        for path in committed()
        if path.startswith(("bus/", "workers/", "admin_ui/", "demo/", "config/"))
        and path.endswith(".py")
        and not path.endswith(("/__init__.py", "/__main__.py"))
    )
    assert {folder: count for folder, count in folders.items() if count > MODULES} == {}
