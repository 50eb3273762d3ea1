"""The files of the demo's runs."""

from __future__ import annotations

from pathlib import Path

from demo.rundir import KEPT, new_run, password, remove_old


def test_the_password_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    first = password(tmp_path)

    assert password(tmp_path) == first
    assert len(first) >= 12
    assert (tmp_path / "demo-password").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["demo-password"]


def test_only_old_finished_runs_are_removed(tmp_path: Path) -> None:
    # given  more finished runs than are kept, and the oldest of all still running
    with new_run(tmp_path) as run:
        older = [tmp_path / "demo" / f"19990101-00000{number}-1" for number in range(KEPT + 2)]
        for path in older:
            path.mkdir()
        running = run.path.rename(tmp_path / "demo" / "19980101-000000-1")
        try:
            removed = remove_old(tmp_path)
        finally:
            running.rename(run.path)

    assert removed == older[:2]
    assert not any(path.exists() for path in older[:2])
    assert all(path.exists() for path in older[2:])
    assert run.path.exists()


def test_a_finished_run_holds_no_lock(tmp_path: Path) -> None:
    with new_run(tmp_path) as run:
        assert (run.path / "running").exists()

    assert not (run.path / "running").exists()
