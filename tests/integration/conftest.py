"""Fixtures that several of these tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bus.cli.audited import Audited
from bus.cli.direct import Direct
from bus.client import Bus
from bus.streams.embedded import EmbeddedServer
from bus.transactions import marks
from tests.integration.commandline import Run


@pytest.fixture
def bus(server: EmbeddedServer, prefix: str) -> Iterator[Bus]:
    """A bus of this test alone, without topics."""
    bus = Bus(server.url, prefix=prefix)
    yield bus
    bus.close()


@pytest.fixture
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copies of marks: a group whose records are gone begins again where the server knows it."""
    monkeypatch.setattr(marks, "advance", lambda bus: 0)


@pytest.fixture(params=[Audited, Direct], ids=["manage", "jitney"])
def run(request: pytest.FixtureRequest, bus: Bus, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command as `manage.py bus` does, then as `jitney` does."""
    return Run(bus, request.param, capsys)
