"""One publisher: a process that publishes at a fixed rate until SIGTERM, and knows exactly what is stored.

Numbers count up within each key, so a message whose fate is unknown stops its key: the publisher reads the
stream until it knows.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time

from bus.client import Bus
from bus.errors import BusUnavailable, PublishUncertain, Undecodable
from bus.format import codec
from bus.format.partition import partition_of
from bus.streams.commands import text
from tests.chaos.ledger import Ledger, Published

#: Keys of one publisher in each topic.
KEYS = 20
#: Share of messages that go to the topic without order.
LOOSE = 0.2
#: Between two attempts while Redis is away. Seconds.
PAUSE = 0.05


class Publisher:
    """Publishes messages named `<number of the publisher>-<count>`."""

    def __init__(self, bus: Bus, number: int, seed: int, ledger: Ledger) -> None:
        self._bus = bus
        self._name = f"p{number}"
        self._random = random.Random(f"{seed}:publisher:{number}")
        self._ledger = ledger
        self._count = 0
        self._seqs: dict[tuple[str, str], int] = {}
        self.stopping = False
        """Set by the signal handler."""

    def run(self, rate: float) -> None:
        """Publish `rate` messages a second; what an outage delayed is made up for."""
        began = time.monotonic()
        while not self.stopping:
            self._count += 1
            self._publish_next()
            time.sleep(max(0.0, began + self._count / rate - time.monotonic()))

    def _publish_next(self) -> None:
        topic = "loose" if self._random.random() < LOOSE else "keyed"
        key = f"{self._name}-k{self._random.randrange(KEYS)}"
        seq = self._seqs[topic, key] = self._seqs.get((topic, key), -1) + 1
        name = f"{self._name}-{self._count}"
        partition, message_id = self._store(topic, key, {"id": name, "seq": seq})
        self._ledger.write(Published(topic, partition, message_id, name, key, seq, time.monotonic_ns()))

    def _store(self, topic: str, key: str, value: dict[str, object]) -> tuple[int, str]:
        while True:
            try:
                receipt = self._bus.publish(topic, value, key=key)
            except PublishUncertain:
                partition = partition_of(key, self._bus.registry.spec(topic).partitions)
                found = self._look_up(topic, partition, value)
                if found is not None:
                    return partition, found
            except BusUnavailable:
                time.sleep(PAUSE)  # nothing tells us when the server is back
            else:
                return receipt.partition, receipt.id

    def _look_up(self, topic: str, partition: int, value: dict[str, object]) -> str | None:
        """The id under which the value is stored, or None if it certainly is not."""
        stream = self._bus.keys.partition(topic, partition).stream
        while True:
            try:
                entries = self._bus.client.call("XRANGE", stream, "-", "+")
            except BusUnavailable:
                time.sleep(PAUSE)
                continue
            return next((text(id) for id, fields in entries if _value(fields) == value), None)


def _value(fields: list[bytes]) -> object:
    """None for what a stranger wrote."""
    try:
        return codec.decode(fields)[0]
    except Undecodable:
        return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--ledger", required=True)
    options = parser.parse_args()
    bus = Bus(os.environ["BUS_URL"], prefix=os.environ["BUS_PREFIX"])
    publisher = Publisher(bus, options.number, options.seed, Ledger(options.ledger))
    signal.signal(signal.SIGTERM, lambda *_: setattr(publisher, "stopping", True))
    publisher.run(options.rate)
    bus.close()


if __name__ == "__main__":
    main()
