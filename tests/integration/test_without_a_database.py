"""A project without DATABASES consumes, and nothing is said of a database that it does not have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bus.streams.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parents[2]

#: A worker, and all that upkeep does once. Prints what it handled; the log goes to stderr.
_PROJECT = """
import logging
import os

import django
from django.conf import settings
from django.core.management import call_command

logging.basicConfig(level=logging.WARNING)
settings.configure(
    SECRET_KEY="of-a-test",
    INSTALLED_APPS=["bus", "workers"],
    BUS={"URL": os.environ["OF_SERVER"], "PREFIX": os.environ["OF_PREFIX"]},
)
django.setup()

from bus import default
from bus.consuming.subscriptions import Subscription
from bus.topics.registry import GroupSpec
from bus.transactions import marks
from tests.integration.inline import InlineWorker
from tests.waiting import wait_until
from workers.upkeep.chores import Chores

handled = []


def handle(message):
    handled.append(message.value)


bus = default.get()
bus.topic("orders", partitions=1)
bus.registry.project(bus.declared.specs().values())
bus.registry.declare_groups([GroupSpec(topic="orders", name="stock")])
with InlineWorker(bus, [Subscription(topic="orders", group="stock", handler=handle)]):
    bus.publish("orders", 1)
    wait_until(lambda: handled, what="the message")
    chores = Chores(bus)
    chores.relay_outbox()
    chores.delete_inbox_rows()
    chores.copy_marks()
    marks.advance(bus)
call_command("check")
print(handled)
"""


def test_a_worker_of_a_project_without_databases_says_nothing_of_them(
    server: EmbeddedServer, prefix: str
) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("BUS_", "DJANGO"))
    }
    environment |= {
        "OF_SERVER": server.url,
        "OF_PREFIX": prefix,
        "BUS_TEST_RUN": "0",
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run(
        [sys.executable, "-c", _PROJECT], env=environment, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert run.stderr == ""
    assert run.stdout == "System check identified no issues (0 silenced).\n[1]\n"
