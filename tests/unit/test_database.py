"""JITNEY_DATABASE."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.database import database


def test_without_a_url_it_is_sqlite_in_the_data_directory(tmp_path: Path) -> None:
    found = database("", tmp_path)
    assert (found["ENGINE"], found["NAME"]) == ("django.db.backends.sqlite3", tmp_path / "db.sqlite3")


def test_a_url_of_postgresql_is_taken_apart(tmp_path: Path) -> None:
    found = database("postgresql://shop:p%40ss@db.example:5433/orders", tmp_path)
    assert [found[name] for name in ("USER", "PASSWORD", "HOST", "PORT", "NAME")] == [
        "shop", "p@ss", "db.example", "5433", "orders",
    ]  # fmt: skip


def test_the_host_may_be_the_directory_of_a_socket(tmp_path: Path) -> None:
    assert database("postgresql://shop@%2Frun%2FPostgres/orders", tmp_path)["HOST"] == "/run/Postgres"


def test_a_port_that_is_none_is_an_error_that_quotes_nothing(tmp_path: Path) -> None:
    # a slash in the password that is not written as %2F, so that a part of it stands where the port does
    with pytest.raises(ValueError, match="the port is no number") as caught:
        database("postgresql://shop:ses/ame@db/shop", tmp_path)
    assert "ses" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("url", ["mysql://shop@db/orders", "postgresql://shop@db", "orders"])
def test_anything_else_is_an_error(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JITNEY_DATABASE must be"):
        database(url, tmp_path)
