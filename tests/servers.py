"""Programs that tests need besides Python packages: servers, a browser."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from bus.streams.embedded import EmbeddedServer
from bus.streams.url import parse
from workers.broker_settings import broker_settings

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


def unavailable(what: str) -> NoReturn:
    """Skip the test at home; fail it where nothing may be skipped (CI=true)."""
    text = f"{what} is not installed; `scripts/install-test-services` says how to get it"
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"{text}. With CI=true this is a failure.", pytrace=False)
    pytest.skip(text)


def program(what: str, *names: str) -> str:
    """The path of the first of these programs that is installed, else `unavailable`."""
    for name in names:
        if path := shutil.which(name):
            return path
    unavailable(what)


def broker_url(url: str) -> str:
    """The URL under which Celery finds a server, given the bus's URL of it."""
    return str(broker_settings(parse(url))["broker_url"])


def valkey_server(directory: Path) -> EmbeddedServer:
    """The server that pip brings; not started yet."""
    return EmbeddedServer(directory)


def redis7_server(directory: Path) -> EmbeddedServer:
    """The oldest server that Jitney supports, from the distribution; not started yet."""
    return EmbeddedServer(directory, binary=program("Redis (redis-server)", "redis-server"))
