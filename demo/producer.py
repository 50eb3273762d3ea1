"""One order-processing process: `python -m demo.producer LEDGER …`, started by the runner.

Publishes record after record with a ledger of its own. An error of the bus is waited out. Where a reply
was lost the record is published again under the same origin, which consumers count once. SIGTERM ends it
after the record in hand; killed and started again, it goes on where its ledger ends.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import django

import bus
from demo.exactness.ledger import Ledger
from demo.generator import generated_records
from demo.signals import Signals
from demo.source import Record, file_records

#: Seconds for which a producer that is told to stop still tries to get its receipt.
_LAST_PATIENCE = 3.0


class Producer:
    """Publishes numbered records and keeps the ledger."""

    def __init__(self, name: str, ledger: Ledger, signals: Signals) -> None:
        self._name = name
        self._ledger = ledger
        self._signals = signals

    def run(self, records: Iterator[Record], rate: float | None) -> None:
        """Publish what the ledger has not confirmed yet, at most `rate` a second, until told to stop."""
        begin = self._ledger.confirmed
        due = time.monotonic()
        for number, record in enumerate(islice(records, begin, None), begin + 1):
            while not self._signals.stopping and (pause := due - time.monotonic()) > 0:
                self._signals.wait(pause)
            if self._signals.stopping:
                return
            if rate:  # after an outage the rate goes on; what was missed is not made up for in a burst
                due = max(due, time.monotonic() - 1) + 1 / rate
            self._publish(number, record)

    def _publish(self, number: int, record: Record) -> None:
        uncertain = self._ledger.doubtful and number == self._ledger.confirmed + 1
        delay, give_up = 0.05, None
        self._ledger.intend(number, record)
        while True:
            try:
                self._ledger.confirm(number, self._send(number, record))
                return
            except (bus.BusUnavailable, bus.BusFull, bus.PublishUncertain) as error:
                uncertain = uncertain or isinstance(error, bus.PublishUncertain)
                print(f"record {number}: {error}; trying again", file=sys.stderr, flush=True)
            if self._signals.stopping:
                give_up = give_up or time.monotonic() + _LAST_PATIENCE
                if time.monotonic() > give_up:
                    self._ledger.give_up(number, uncertain=uncertain)
                    return
            self._signals.wait(delay)
            if uncertain:
                self._ledger.repeat(number)
            delay = min(1.0, delay * 2)

    def _send(self, number: int, record: Record) -> bus.Receipt:
        headers = {"origin": f"{self._name}:{number}"}
        try:
            return bus.publish(record.topic, record.value, key=record.key, headers=headers)
        except bus.InvalidMessage as error:
            # Too large, for example. Its place is taken by the reason, which ends as a dead letter.
            return bus.publish(record.topic, {"refused": str(error)[:500]}, headers=headers)


def main() -> None:
    """Parse the arguments and publish."""
    parser = argparse.ArgumentParser(prog="demo.producer")
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, default=1)
    parser.add_argument("--producers", type=int, default=1)
    parser.add_argument("--rate", type=float)
    options = parser.parse_args()
    if options.file:
        records = file_records(options.file)
    else:
        records = generated_records(options.seed, options.number, options.producers)
    with Signals() as signals:
        django.setup()
        ledger = Ledger(options.ledger)
        Producer(options.name, ledger, signals).run(records, options.rate)
        ledger.close()


if __name__ == "__main__":
    main()
