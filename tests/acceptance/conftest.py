"""Fixtures for tests with real worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.streams.embedded import EmbeddedServer
from tests.acceptance.shopping import Shop
from tests.servers import broker_url, valkey_server


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


@pytest.fixture
def broker(shop: Shop, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """The broker of the shop's workers, beside the server of the bus."""
    with valkey_server(tmp_path / "broker") as server:
        shop.environment["CELERY_BROKER_URL"] = broker_url(server.url)
        yield server
        server.thaw()
