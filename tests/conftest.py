"""Fixtures: a private server per test process, a prefix per test, a client."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from hypothesis import HealthCheck
from hypothesis import settings as examples

from bus import testrun
from bus.streams.connect import Client, Endpoint
from bus.streams.embedded import EmbeddedServer
from tests.databases import KINDS, Copies, default_database
from tests.mariadb import MariaDB, mariadb_server
from tests.postgres import Postgres, postgres_server
from tests.servers import CHROMIUM_NAMES, program, redis7_server, valkey_server
from tests.wheel import build, install

# Every test here has a server or a prefix of its own, and gives it to the processes that it starts as theirs.
os.environ[testrun.MARK] = "0"

# A shell that starts the tests in the background makes them ignore Ctrl-C, and so would all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Timing never decides: other tests run beside these, and the machine may have little to spare.
examples.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
examples.load_profile("unhurried")

#: Tests that stay in one process, because they share what is dear to make: files and directories → it …
_TOGETHER = {
    "ui": "browser",
    "test_packaging.py": "wheel",
    "test_second_project.py": "wheel",
    "test_typed.py": "wheel",
}
#: … and kinds of databases. Making and migrating one takes two to three seconds of CPU.
_SERVERS = ("mariadb", "postgresql")
#: Seconds that a test may take which begins early. Not more of them: they start many processes each.
_LONG = 400


def pytest_configure() -> None:
    """Passwords get a hash that costs nothing; the real one takes a quarter of a second each time."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares a browser, a wheel or a database server. Begin with it, and with what takes
    longest: begun last, these would end alone."""
    for item in items:
        for name in _group_of(item):
            item.add_marker(pytest.mark.xdist_group(name))
    items.sort(key=lambda item: not (item.get_closest_marker("xdist_group") or _timeout(item) >= _LONG))


def _timeout(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return marker.args[0] if marker is not None else 0


def _group_of(item: pytest.Item) -> list[str]:
    parameters = item.name.partition("[")[2]
    kinds = [kind for kind in _SERVERS if kind in parameters]
    return [shared for name, shared in _TOGETHER.items() if name in item.path.parts] or kinds[:1]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked `both_servers` run on each family of servers."""
    if metafunc.definition.get_closest_marker("both_servers"):
        for name in {"server", "own_server"} & set(metafunc.fixturenames):
            metafunc.parametrize(name, ["valkey", "redis7"], indirect=True)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A Valkey of this test process. Tests that stop or freeze a server take `own_server`."""
    with valkey_server(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def redis7(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A Redis 7.0 of this test process."""
    with redis7_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """A MariaDB of this test process."""
    with mariadb_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgres]:
    """A PostgreSQL of this test process."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Copies:
    return Copies(tmp_path_factory.mktemp("databases"), request.getfixturevalue)


@pytest.fixture(params=KINDS)
def database(
    request: pytest.FixtureRequest, copies: Copies, tmp_path: Path, django_db_blocker: Any
) -> Iterator[str]:
    """A database of this test alone under the alias "default", with real transactions; its kind."""
    with django_db_blocker.unblock(), default_database(copies.make(request.param, tmp_path)):
        yield request.param


@pytest.fixture
def server(request: pytest.FixtureRequest) -> EmbeddedServer:
    """Valkey; for tests marked `both_servers` Valkey, then Redis 7.0."""
    chosen: EmbeddedServer = request.getfixturevalue(getattr(request, "param", "valkey"))
    return chosen


@pytest.fixture
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server for this test alone, which may kill, freeze and restart it: of a family as for `server`."""
    make = redis7_server if getattr(request, "param", "valkey") == "redis7" else valkey_server
    with make(tmp_path / "server") as server:
        yield server


@pytest.fixture
def prefix() -> str:
    """A prefix of keys that no other test uses."""
    return f"t{uuid.uuid4().hex[:10]}"


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[Client]:
    """A client of `server`."""
    client = Client(Endpoint(server.url))
    yield client
    client.close()


@pytest.fixture(scope="session")
def wheel_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the installed wheel."""
    target = tmp_path_factory.mktemp("installed")
    install(wheel_path, target)
    return target


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the distribution's Chromium."""
    return program("Chromium", *CHROMIUM_NAMES)
