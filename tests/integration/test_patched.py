"""Publishing from processes that gevent or eventlet has patched: all ways work, and keep the timeout."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from bus.client import Bus
from bus.streams.embedded import EmbeddedServer
from bus.values import TopicSpec

ROOT = Path(__file__).parents[2]
PATCH = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}
SCRIPT = """
import asyncio, sys, threading, time
import bus
from bus.client import Bus
from bus.errors import BusUnavailable, PublishUncertain

TIMEOUT = 1.0
one = Bus(sys.argv[1], prefix=sys.argv[2], timeout=TIMEOUT)
one.publish("orders", 0)
assert one.publish_many("orders", range(1, 1201)) == 1200
with bus.Producer(one) as producer:
    futures = [producer.send("orders", number) for number in range(1201, 1301)]
assert len({future.result().id for future in futures}) == 100

def publish(first):
    for number in range(first, first + 10):
        one.publish("orders", number)

crowd = [threading.Thread(target=publish, args=(first,)) for first in range(1301, 2301, 10)]
for each in crowd: each.start()
for each in crowd: each.join()

async def publish_all():
    many = await asyncio.gather(*(one.apublish("orders", number, key="k") for number in range(2301, 2601)))
    assert len({receipt.id for receipt in many}) == 300  # one key, one partition
    assert await one.apublish_many("orders", range(2601, 2901)) == 300

asyncio.run(publish_all())
print("published", flush=True)

assert sys.stdin.readline() == "frozen\\n"
for _ in range(2):  # over the link that is there, and over a new one
    began = time.monotonic()
    try:
        one.publish("orders", 9999)
    except (PublishUncertain, BusUnavailable) as error:
        took = time.monotonic() - began
        assert TIMEOUT * 0.9 < took < TIMEOUT * 4, took
    else:
        raise AssertionError("it was published")
began = time.monotonic()
producer = bus.Producer(one, delivery_timeout=2)
future = producer.send("orders", 9999)
try:
    future.result(timeout=10)
except (PublishUncertain, BusUnavailable) as error:
    assert time.monotonic() - began < 8
else:
    raise AssertionError("it was published")


async def publish_to_nobody():
    turns = 0
    waiting = asyncio.ensure_future(one.apublish("orders", 9999))
    began = time.monotonic()
    while time.monotonic() < began + 2 * TIMEOUT:
        await asyncio.sleep(0.02)
        turns += 1
    assert turns > 20, turns  # the loop goes on
    waiting.cancel()

asyncio.run(publish_to_nobody())
print("timed out", flush=True)
import os
os._exit(0)  # what was buffered has nobody to go to
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("library", PATCH)
def test_publishing_works_and_keeps_its_timeout_in_a_patched_process(
    own_server: EmbeddedServer, prefix: str, library: str
) -> None:
    # Not imported here: eventlet changes os.fork for the rest of this process.
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    bus = Bus(own_server.url, prefix=prefix)
    bus.registry.project([TopicSpec(name="orders", partitions=2)])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PATCH[library] + SCRIPT, own_server.url, prefix],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "published\n", process.communicate(timeout=20)[0]
        own_server.freeze()
        out, _ = process.communicate("frozen\n", timeout=60)
        assert out.endswith("timed out\n"), out
        assert process.returncode == 0
    finally:
        own_server.thaw()
        if process.poll() is None:
            process.kill()
            process.wait()
    lengths = [bus.client.call("XLEN", bus.keys.partition("orders", number).stream) for number in (0, 1)]
    bus.close()
    assert sum(lengths) >= 2901
