"""The loop that one would write by hand: XREADGROUP COUNT 100, decode, call, one XACK for the batch."""

from __future__ import annotations

import sys
from typing import Any

import orjson
import redis


def handle(order: dict[str, int]) -> None:
    """What the handler of the other side does."""
    global total
    total += order["qty"]


total = 0


def main(url: str, group: str, consumer: str, streams: list[str]) -> None:
    client = redis.Redis.from_url(url)
    wanted: dict[Any, Any] = dict.fromkeys(streams, ">")
    print("ready", flush=True)
    sys.stdin.readline()
    while True:
        reply: Any = client.xreadgroup(group, consumer, wanted, count=100, block=200)
        if not reply:
            return
        for stream, entries in reply:
            for _, fields in entries:
                handle(orjson.loads(fields[b"v"]))
            client.xack(stream, group, *[entry[0] for entry in entries])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
