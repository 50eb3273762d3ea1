"""What `import bus` gives, and what it does not do."""

from __future__ import annotations

import inspect
import subprocess
import sys

import bus

PROMISED = {
    "BufferFull", "Producer", "ProducerClosed", "PublishFuture", "apublish", "apublish_many",
    "Bus", "TopicHandle", "publish", "publish_many", "topic", "RetryPolicy", "subscribe", "Message",
    "Position", "Receipt", "TopicSpec", "Reject", "Retry", "BusError", "BusFull", "BusUnavailable",
    "ConfigurationError", "InvalidMessage", "NotInTransaction", "publish_in_transaction", "publish_on_commit",
    "Forbidden", "PublishUncertain", "ReadOnly", "StaleLease", "Undecodable",
    "UnknownGroup", "UnknownTopic",
}  # fmt: skip

IMPORT_ALONE = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("a socket was opened")
socket.socket.connect = refuse
import bus
orders = bus.topic("orders", partitions=8, retention="7d")
@bus.subscribe(orders, group="inventory")
def handle(message): pass
other = bus.Bus("redis://nowhere.invalid:1/0")
assert "celery" not in sys.modules
from django.conf import settings
assert not settings.configured
print("fine")
"""


def test_all_names_what_is_promised():
    assert set(bus.__all__) == PROMISED
    assert len(bus.__all__) == len(set(bus.__all__))


def test_every_name_exists_and_is_explained():
    for name in bus.__all__:
        assert inspect.getdoc(getattr(bus, name)), f"bus.{name} has no docstring"


def test_every_option_of_the_functions_is_typed():
    for name in bus.__all__:
        each = getattr(bus, name)
        if inspect.isfunction(each):
            signature = inspect.signature(each)
            assert signature.return_annotation is not inspect.Signature.empty
            assert all(each.annotation is not each.empty for each in signature.parameters.values())


def test_a_function_with_a_handler_is_returned_unchanged():
    def handle(message):
        return message

    table = bus._default.subscriptions
    before = dict(table._table)
    try:
        assert bus.subscribe("orders-of-a-test", group="inventory")(handle) is handle
        found = table.get("orders-of-a-test", "inventory")
        assert found is not None
        assert found.handler is handle
    finally:
        table._table.clear()
        table._table.update(before)


def test_import_needs_no_django_settings_and_opens_no_connection(tmp_path):
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALONE],
        capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
        cwd=tmp_path,
    )  # fmt: skip
    assert (found.stdout.strip(), found.stderr) == ("fine", "")
