"""The handlers that FLEET_CODE names, as `topic/group` with commas; each writes `topic group number`."""

from __future__ import annotations

import os
from collections.abc import Callable

import bus


def _handler(topic: str, group: str) -> Callable[[bus.Message], None]:
    def handle(message: bus.Message) -> None:
        descriptor = os.open(os.environ["SHOP_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{topic} {group} {message.value}\n".encode())
        finally:
            os.close(descriptor)

    handle.__qualname__ = f"handle_{topic}_for_{group}"
    return handle


for _place in os.environ["FLEET_CODE"].split(","):
    _topic, _group = _place.split("/")
    bus.topic(_topic, partitions=1)
    bus.subscribe(_topic, group=_group)(_handler(_topic, _group))
