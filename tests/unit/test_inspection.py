"""What `celery inspect` shows has no passwords, whatever shape the server URL has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import kombu
import pytest
from celery import Celery
from celery.worker.consumer.connection import Connection
from celery.worker.control import Panel

from bus.safety.secret import Secret
from bus.streams.url import Credentials, parse
from workers.broker_settings import broker_settings
from workers.inspection import mask, masked

URLS = [
    ("redis://shop:Sesame@localhost/3", None),
    ("redis://localhost/3?password=Sesame", None),
    ("unix://shop:Sesame@/run/redis.sock", None),
    ("unix:///run/redis.sock?password=Sesame", None),
    ("unix:///run/redis.sock", "Sesame"),
    ("redis+sentinel://:Sesame@one,two/shop?sentinel_password=Sesame", None),
]


@pytest.mark.parametrize(("url", "word"), URLS)
def test_no_password_of_the_bus_or_of_its_server_as_broker_is_shown(url: str, word: str | None) -> None:
    # given a worker whose broker is the server of the bus, and that has its connection
    bus = {"URL": url} | ({"PASSWORD": word} if word else {})
    app = Celery("shop", set_as_current=False)
    found = broker_settings(parse(url, Credentials(password=Secret(word) if word else None)))
    app.conf.update(found, BUS=bus, DATABASES=[{"PASSWORD": "Sesame"}])
    connection = kombu.Connection(
        found["broker_url"], transport_options=found.get("broker_transport_options")
    )
    broker = Connection.info(SimpleNamespace(), SimpleNamespace(connection=connection))  # type: ignore[arg-type]
    controller = SimpleNamespace(stats=lambda: broker)
    state = SimpleNamespace(app=app, consumer=SimpleNamespace(controller=controller))
    mask(Panel.data)
    # when it is asked
    answers = [Panel.data[name](state) for name in ("conf", "dump_conf", "stats", "report")]
    # then
    assert "Sesame" not in repr(answers)
    assert "BUS" in answers[0]


def test_commands_are_masked_once_and_others_are_left_alone() -> None:
    def conf(_state: Any) -> Any:
        return {"URL": "redis://:Sesame@h"}

    def ping(_state: Any) -> Any:
        return {"ok": "pong"}

    commands = {"conf": conf, "dump_conf": conf, "ping": ping}
    mask(commands)
    once = dict(commands)
    mask(commands)
    assert commands == once
    assert commands["ping"] is ping
    assert commands["conf"](None) == commands["dump_conf"](None) == {"URL": "redis://***:***@h"}


def test_what_is_no_password_is_shown_as_it_is() -> None:
    shown = {"pool": {"max-concurrency": 2, "processes": [1, 2]}, "password": None, "broker": "redis://h/0"}
    assert masked(shown) == shown
