"""What each pool slot is doing, in memory shared by the worker's main process and its children.

The memory is mapped before the pool forks, so it outlives every child: when one dies, the parent reads here
which message it ran and which it had finished. It consists of 64-bit words, each written with one aligned
store; a child writes only to its own slot.

    word 0           drain
    then, per slot:
      0 revoke       the parent takes lanes back: stop before the next message
      1 want         somebody waits for this slot: do not linger
      2 pid          the process that uses the slot
      3 client id    the child's connection while it lingers in a blocking read, else 0
      4 handler ns   mean time of the handler (a double)
      5 mark         0 nothing runs, 1 a message, 2 a batch; the higher bits count, so no two marks are equal
      6 … 11         what runs: lane index, first ms, first seq, last ms, last seq, since when (a double)
      12 epoch       raised whenever the list of finished messages is emptied
      13 finished    how many entries of the list count
      14 reported    bit n is set once lane n of the slice has its report
      15             unused
      16 …           64 reports: flags, last ms, last seq, next due ms
      272 …          1,024 finished messages: lane index, ms, seq

Every record is written first and made to count last, by the one store of its mark, count or bit. So a
child that is killed in between has not run the message, or has not finished it; what is read after its
death is exact. What is read while it lives is checked against a change meanwhile, and a record that does
not hold still is left out: too few finished messages are harmless, one too many would lose it.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass
from typing import NamedTuple

from workers.order import MAX_LANES

MAX_FINISHED = 1024
"""Finished messages that are remembered for one turn; the others count as unfinished."""

_REVOKE, _WANT, _PID, _CLIENT, _HANDLER, _MARK, _RUNNING = 0, 1, 2, 3, 4, 5, 6
_SINCE, _EPOCH, _COUNT, _REPORTED, _REPORTS = 11, 12, 13, 14, 16
_REPORT_WORDS, _FINISHED_WORDS = 4, 3
_FINISHED = _REPORTS + MAX_LANES * _REPORT_WORDS
_SLOT_WORDS = _FINISHED + MAX_FINISHED * _FINISHED_WORDS
_WORD = 8

_MESSAGE, _BATCH, _KINDS = 1, 2, 4

#: Attempts to read a record that a living child is changing at the same time.
_TRIES = 20


class Running(NamedTuple):
    """The message that a slot runs (of a batch: the first), and since when by time.monotonic()."""

    lane_index: int
    ms: int
    seq: int
    since: float


class Report(NamedTuple):
    """What a slice left behind of one lane. The meaning of `flags` is the slice's own."""

    lane_index: int
    flags: int
    last_ms: int
    last_seq: int
    next_due_ms: int


@dataclass(frozen=True, slots=True)
class SlotView:
    """A slot as the parent read it."""

    pid: int
    running: Running | None
    batch_end: tuple[int, int] | None
    """The id (ms, seq) of the last message of the batch that runs."""
    finished: list[tuple[int, int, int]]
    """(lane index, ms, seq) of messages that were handled and are not settled yet."""
    reports: list[Report]
    client_id: int
    handler_ns: float

    @property
    def is_batch(self) -> bool:
        return self.batch_end is not None


class Progress:
    """The shared memory of one worker. Make it before the pool forks."""

    def __init__(self, slots: int) -> None:
        """`slots`: processes (or threads) of the pool, numbered from 0."""
        self.slots = slots
        # Two words before the first slot keep slots aligned to 16 bytes.
        self._bases = [2 + slot * _SLOT_WORDS for slot in range(slots)]
        memory = memoryview(mmap.mmap(-1, (2 + slots * _SLOT_WORDS) * _WORD))
        self._words = memory.cast("Q")
        self._signed = memory.cast("q")
        self._doubles = memory.cast("d")

    # ------------------------------------------------------------------ from the parent to its children

    def set_drain(self) -> None:
        """Tell every slot to end after the message in hand."""
        self._words[0] = 1

    @property
    def draining(self) -> bool:
        return self._words[0] != 0

    def revoke(self, slot: int) -> None:
        """Tell one slot to end its slice before its next message."""
        self._words[self._bases[slot] + _REVOKE] = 1

    def revoked(self, slot: int) -> bool:
        return self._words[self._bases[slot] + _REVOKE] != 0

    def want(self, slot: int) -> None:
        """Tell one slot that work waits for it, so that it does not linger."""
        self._words[self._bases[slot] + _WANT] = 1

    def wanted(self, slot: int) -> bool:
        return self._words[self._bases[slot] + _WANT] != 0

    def stopping(self, slot: int) -> bool:
        """Draining or revoked: no further message may be started. Asked before each message."""
        return (self._words[0] or self._words[self._bases[slot]]) != 0

    # ------------------------------------------------------------------ the child's side

    def begin(self, slot: int, pid: int) -> None:
        """A slice begins. What the parent has said meanwhile (revoke, want) stays."""
        base = self._bases[slot]
        self._words[base + _CLIENT] = 0
        self._words[base + _REPORTED] = 0
        self.settled(slot)
        self._words[base + _PID] = pid

    def running(self, slot: int, lane_index: int, ms: int, seq: int) -> None:
        """A handler is about to be called with this message."""
        words, base = self._words, self._bases[slot]
        mark = words[base + _MARK] & -_KINDS
        words[base + _MARK] = mark
        words[base + _RUNNING] = lane_index
        words[base + _RUNNING + 1] = ms
        words[base + _RUNNING + 2] = seq
        self._doubles[base + _SINCE] = time.monotonic()
        words[base + _MARK] = mark + _KINDS + _MESSAGE

    def batch_running(
        self, slot: int, lane_index: int, first: tuple[int, int], last: tuple[int, int]
    ) -> None:
        """A handler is about to be called with all messages from `first` to `last`, ids as (ms, seq)."""
        words, base = self._words, self._bases[slot]
        mark = words[base + _MARK] & -_KINDS
        words[base + _MARK] = mark
        for offset, value in enumerate((lane_index, *first, *last)):
            words[base + _RUNNING + offset] = value
        self._doubles[base + _SINCE] = time.monotonic()
        words[base + _MARK] = mark + _KINDS + _BATCH

    def finished(self, slot: int, lane_index: int, ms: int, seq: int) -> None:
        """The handler returned for this message, and nothing of this slot runs now."""
        words, base = self._words, self._bases[slot]
        count = words[base + _COUNT]
        if count < MAX_FINISHED:
            place = base + _FINISHED + count * _FINISHED_WORDS
            words[place] = lane_index
            words[place + 1] = ms
            words[place + 2] = seq
            words[base + _COUNT] = count + 1
        words[base + _MARK] &= -_KINDS

    def stopped(self, slot: int) -> None:
        """The handler ended in another way (retry, dead letter): nothing runs now, nothing is finished."""
        self._words[self._bases[slot] + _MARK] &= -_KINDS

    def settled(self, slot: int) -> None:
        """A turn was settled: what was finished is no longer of interest."""
        words, base = self._words, self._bases[slot]
        words[base + _EPOCH] += 1
        words[base + _COUNT] = 0
        words[base + _MARK] &= -_KINDS

    def waiting(self, slot: int, client_id: int) -> None:
        """The child blocks in a read on this connection; CLIENT UNBLOCK ends it."""
        self._words[self._bases[slot] + _CLIENT] = client_id

    def awake(self, slot: int) -> None:
        """The blocking read is over."""
        self._words[self._bases[slot] + _CLIENT] = 0

    def report(
        self, slot: int, lane_index: int, flags: int, last_ms: int, last_seq: int, next_due_ms: int
    ) -> None:
        """What the slice leaves behind of one of its lanes."""
        words, base = self._words, self._bases[slot]
        place = base + _REPORTS + lane_index * _REPORT_WORDS
        words[base + _REPORTED] &= ~(1 << lane_index)
        words[place] = flags
        words[place + 1] = last_ms
        words[place + 2] = last_seq
        self._signed[place + 3] = next_due_ms
        words[base + _REPORTED] |= 1 << lane_index

    def handler_ns(self, slot: int) -> float:
        """Mean time of the handler in nanoseconds; 0.0 if the slice has not measured any."""
        return self._doubles[self._bases[slot] + _HANDLER]

    def set_handler_ns(self, slot: int, nanoseconds: float) -> None:
        self._doubles[self._bases[slot] + _HANDLER] = nanoseconds

    # ------------------------------------------------------------------ the parent's side

    def read(self, slot: int) -> SlotView:
        """What the slot is doing, or was doing when its process died."""
        words, base = self._words, self._bases[slot]
        running, batch_end = self._read_running(base)
        return SlotView(
            pid=words[base + _PID],
            running=running,
            batch_end=batch_end,
            finished=self._read_finished(base),
            reports=self._read_reports(base),
            client_id=words[base + _CLIENT],
            handler_ns=self._doubles[base + _HANDLER],
        )

    def clear(self, slot: int) -> None:
        """Forget the last slice before the next is sent; only while no child uses the slot."""
        base = self._bases[slot]
        self._words[base + _REVOKE] = 0
        self._words[base + _WANT] = 0
        self._doubles[base + _HANDLER] = 0.0
        self.begin(slot, 0)

    def _read_running(self, base: int) -> tuple[Running | None, tuple[int, int] | None]:
        words = self._words
        for _ in range(_TRIES):
            mark = words[base + _MARK]
            lane, ms, seq, last_ms, last_seq = words[base + _RUNNING : base + _SINCE]
            since = self._doubles[base + _SINCE]
            if words[base + _MARK] != mark:
                continue
            kind = mark % _KINDS
            running = Running(lane, ms, seq, since) if kind else None
            return running, (last_ms, last_seq) if kind == _BATCH else None
        return None, None

    def _read_finished(self, base: int) -> list[tuple[int, int, int]]:
        words, first = self._words, base + _FINISHED
        for _ in range(_TRIES):
            epoch = words[base + _EPOCH]
            count = words[base + _COUNT]
            flat = words[first : first + count * _FINISHED_WORDS].tolist()
            if words[base + _EPOCH] == epoch:
                return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
        return []

    def _read_reports(self, base: int) -> list[Report]:
        reported = self._words[base + _REPORTED]
        reports = []
        for lane in range(reported.bit_length()):
            if reported >> lane & 1:
                place = base + _REPORTS + lane * _REPORT_WORDS
                flags, last_ms, last_seq = self._words[place : place + 3]
                reports.append(Report(lane, flags, last_ms, last_seq, self._signed[place + 3]))
        return reports
