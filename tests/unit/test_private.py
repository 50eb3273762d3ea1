"""Files for their owner alone, whatever the umask, and whoever was there before."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus.errors import ConfigurationError
from bus.safety import private
from config.database import database
from config.secret import secret_key
from demo.rundir import new_run, password

NOBODY = 65534


@pytest.fixture(params=[0o000, 0o022, 0o277])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    base = private.directory(tmp_path / "a" / "b")
    assert secret_key(base / "key") == secret_key(base / "key")
    database("", base)
    assert password(base)
    with new_run(base) as run:
        assert {mode(each) for each in (run.path, run.ledgers, run.logs)} == {0o700}
    assert {mode(each) for each in (tmp_path / "a", base, base / "demo")} == {0o700}
    assert {mode(base / name) & 0o077 for name in ("key", "db.sqlite3", "demo-password")} == {0}


@pytest.mark.parametrize("more", [0o055, 0o077], ids=["to read", "to write"])
def test_what_was_open_to_others_is_closed(tmp_path: Path, more: int) -> None:
    base = tmp_path / "data"
    base.mkdir()
    base.chmod(0o700 | more)
    (base / "key").write_text("k")
    (base / "key").chmod((0o700 | more) & 0o666)
    private.directory(base)
    assert private.text(base / "key", lambda: "another") == "k"
    assert (mode(base), mode(base / "key")) == (0o700, 0o600)


WAYS: list[Callable[[Path], object]] = [private.file, lambda path: private.text(path, lambda: "k")]


@pytest.mark.parametrize("way", WAYS)
def test_a_link_in_place_of_a_file_is_refused_and_its_target_is_left_alone(
    tmp_path: Path, way: Callable[[Path], object]
) -> None:
    (tmp_path / "target").write_text("theirs")
    for target in ("target", "nowhere"):
        link = tmp_path / f"link-to-{target}"
        link.symlink_to(tmp_path / target)
        with pytest.raises(ConfigurationError, match="no link"):
            way(link)
    assert (tmp_path / "target").read_text() == "theirs"
    assert not (tmp_path / "nowhere").exists()


def test_a_link_in_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(ConfigurationError, match="no link"):
        private.directory(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("theirs", "file"):
        os.chown(tmp_path / name, NOBODY, NOBODY)
    with pytest.raises(ConfigurationError, match="directory of user"):
        private.directory(tmp_path / "theirs")
    for way in WAYS:
        with pytest.raises(ConfigurationError, match="file of user"):
            way(tmp_path / "file")


def test_a_directory_that_is_shared_is_refused_and_stays_shared(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(ConfigurationError):
        private.directory(tmp_path)
    assert mode(tmp_path) == 0o1777
