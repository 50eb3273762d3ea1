"""What one producer meant to publish and what it got receipts for: JSON lines, only ever appended to.

    {"n": 7, "state": "intended", "topic": …, "key": …, "value": …}    written before publishing
    {"n": 7, "state": "confirmed", "partition": 3, "id": "1700…-0"}    written after the receipt
    {"n": 7, "state": "repeated"}       a reply was lost: from here on there may be several copies
    {"n": 7, "state": "abandoned"}      the bus was away until the end: it is certainly not stored
    {"n": 7, "state": "uncertain"}      the same, but it may be stored

A record's number is also its identity in the messages (header `origin`), so the record that was under
way when the producer was killed is simply published again: consumers count an origin once.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import bus
from demo.source import Record


class Ledger:
    """The ledger of one producer; goes on where the file ends."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        entries = self._repair(path.read_bytes())
        self.confirmed = max((entry["n"] for entry in entries if entry["state"] == "confirmed"), default=0)
        """Records that need not be published again: all up to this number."""
        self.doubtful = max((entry["n"] for entry in entries), default=0) > self.confirmed
        """True if the first record after those was under way already, so that it may be stored."""

    def intend(self, number: int, record: Record) -> None:
        """Write down what is going to be published."""
        entry = {"topic": record.topic, "key": record.key, "value": record.value}
        self._append({"n": number, "state": "intended", **entry})

    def confirm(self, number: int, receipt: bus.Receipt) -> None:
        """Write down that it is stored."""
        self._append({"n": number, "state": "confirmed", "partition": receipt.partition, "id": receipt.id})
        self.confirmed = number

    def repeat(self, number: int) -> None:
        """Write down that it is published once more, though it may be stored."""
        self._append({"n": number, "state": "repeated"})

    def give_up(self, number: int, *, uncertain: bool) -> None:
        """Write down that the producer stopped before it got a receipt."""
        self._append({"n": number, "state": "uncertain" if uncertain else "abandoned"})

    def close(self) -> None:
        os.close(self._file)

    def _append(self, entry: dict[str, Any]) -> None:
        # One write for the whole line; what the system has taken survives the death of this process.
        os.write(self._file, json.dumps(entry).encode() + b"\n")

    def _repair(self, content: bytes) -> list[dict[str, Any]]:
        """Cut off a line that was being written when the process died; return the entries."""
        whole = content.rfind(b"\n") + 1
        os.ftruncate(self._file, whole)
        return [json.loads(line) for line in content[:whole].split(b"\n")[:-1]]
