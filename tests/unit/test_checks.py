"""System checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus import checks
from workers.apps import check_bus


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({}, "BUS['URL'] is missing"),
        ({"URL": "redis://x", "PREFX": "shop"}, "Did you mean 'PREFIX'?"),
        ({"URL": "ftp://x"}, "not a server URL"),
        ({"URL": "redis://x", "TIMEOUT": -1}, "TIMEOUT"),
    ],
)
def test_a_wrong_setting_is_an_error_that_says_what_is_wrong(settings, setting: dict, text: str) -> None:
    settings.BUS = setting

    (error,) = checks.check_setting()

    assert error.id == "jitney.E001"
    assert text in error.msg


def test_a_right_setting_passes_without_a_connection(settings) -> None:
    settings.BUS = {"URL": "redis://127.0.0.1:1/0"}

    assert checks.check_setting() == []


def test_our_own_packages_are_in_their_places() -> None:
    assert checks.check_places() == []
    assert check_bus() == []


def test_another_package_of_the_same_name_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = tmp_path / "workers"
    monkeypatch.setattr(checks, "_place", lambda name: theirs if name == "workers" else None)

    (error,) = checks.check_places()

    assert error.id == "jitney.E002"
    assert str(theirs) in error.msg
