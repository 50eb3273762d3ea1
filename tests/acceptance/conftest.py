"""Fixtures for tests with real worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.streams.embedded import EmbeddedServer
from tests.acceptance.shopping import Shop


@pytest.fixture
def shop(server: EmbeddedServer, prefix: str, tmp_path: Path) -> Iterator[Shop]:
    """A shop on the server of this test process."""
    shop = Shop(server.url, prefix, tmp_path)
    yield shop
    shop.end()


@pytest.fixture
def own_shop(own_server: EmbeddedServer, prefix: str, tmp_path: Path) -> Iterator[Shop]:
    """A shop on a server of its own, which the test may kill and freeze."""
    shop = Shop(own_server.url, prefix, tmp_path)
    yield shop
    shop.end()
