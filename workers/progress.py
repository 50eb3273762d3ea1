"""What each pool slot is doing, in memory shared by the worker's main process and its children.

The memory is mapped before the pool forks, so it outlives every child: when one dies, the parent reads here
which message it ran, and what became of those before it. It consists of 64-bit words, each written with one
aligned store; a child writes only to its own slot.

    word 0           drain
    then, per slot:
      0 revoke       the parent takes lanes back: stop before the next message
      1 want         somebody waits for this slot: do not linger
      2 pid          the process that uses the slot
      3 client id    the child's connection while it lingers in a blocking read, else 0
      4 handler ns   mean time of the handler (a double)
      5 state        bits 0, 1: 0 nothing runs, 1 a message, 2 a batch
                     bits 2 to 15: how many entries of the list have ended; the next one is what runs
                     bits 16 to 63: a number that grows, so that no two states are equal
      6 … 11         the last id of the batch that runs, as text
      12 epoch       raised whenever the list of messages is emptied
      13 reported    bit n is set once lane n of the slice has its report
      14 since       when what runs began (a double)
      15 records     bits 0 to 31: how many bytes of the records are used; bits 32 to 63: in which epoch
      16 took in     1 once what the slice before had left, which died, is settled
      17 …           64 reports: flags, last ms, last seq, next due ms, history of the server
      337 …          1,025 messages: bits 0 to 7 lane index; 8 to 31 where its record begins; 32 to 63 how
                     long that is, 0 for a message that is done, which needs none
      1362 …         the same messages: id as text
      7512 …         64 KiB of records: what to settle of messages that are not done (bus.consuming.lane)

Every record is written first and made to count last, by the one store of the state or of its bit; the same
store ends a message and counts it as ended. So a child that is killed in between has not run the message,
or has not ended it, and never a bit of both: what is read after its death is exact. What is read while it
lives is checked against a change meanwhile, and a record that does not hold still is left out: too few
finished messages are harmless, one too many would lose it. Where there is no room for what became of a
message that is not done, it is settled before the next one is started.

What lies in the list behind the message that runs does not count yet. So a batch is laid out at once, ids as
text, as they come from Redis, and a message of it costs three stores (see `Progress.each`).
"""

from __future__ import annotations

import mmap
import struct
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from bus.values import Message
from workers.order import MAX_LANES
from workers.slot_view import InHand, LaneReport, SlotView

MAX_FINISHED = 1024
"""Ended messages that are remembered for one turn; others that are done count as unfinished."""
RECORD_BYTES = 1 << 16
"""Room for what became of messages that are not done, in one turn. One record always fits in."""

#: Where in a slot a word stands; a word has 8 bytes, a report of a lane 5 words.
_REVOKE, _WANT, _PID, _CLIENT, _HANDLER, _STATE, _BATCH_END = 0, 1, 2, 3, 4, 5, 6
_EPOCH, _REPORTED, _SINCE, _RECORDED, _TOOK_IN, _REPORTS = 12, 13, 14, 15, 16, 17
_REPORT_WORDS = 5
_WORD = 8
#: A stream id is at most 20 digits, a dash and 20 digits.
_ID = struct.Struct("=48s")
_ID_WORDS = _ID.size // _WORD
_LANES = _REPORTS + MAX_LANES * _REPORT_WORDS
_IDS = _LANES + MAX_FINISHED + 1
_RECORDS = _IDS + (MAX_FINISHED + 1) * _ID_WORDS
_SLOT_WORDS = _RECORDS + RECORD_BYTES // _WORD

#: The parts of an entry's lane word.
_LANE_MASK, _PLACE_SHIFT, _PLACE_MASK, _SIZE_SHIFT = 0xFF, 8, 0xFFFFFF, 32
#: The parts of the word about records.
_USED_MASK, _AGE_SHIFT = 0xFFFFFFFF, 32

#: The parts of the state word.
_MESSAGE, _BATCH, _KIND_MASK = 1, 2, 3
_ONE, _COUNT_SHIFT, _COUNT_MASK = 1 << 2, 2, (1 << 14) - 1
_FULL, _NEXT = MAX_FINISHED << 2, 1 << 16
_COUNT_FIELD, _LOW = _COUNT_MASK << 2, _NEXT - 1
_NEXT_MESSAGE = _NEXT | _MESSAGE
_NEXT_FINISHED = _NEXT + _ONE

#: Attempts to read a record that a living child is changing at the same time.
_TRIES = 20


class Progress:
    """The shared memory of one worker. Make it before the pool forks."""

    def __init__(self, slots: int) -> None:
        """`slots`: processes (or threads) of the pool, numbered from 0."""
        self.slots = slots
        self._bases = [1 + slot * _SLOT_WORDS for slot in range(slots)]
        memory = memoryview(mmap.mmap(-1, (1 + slots * _SLOT_WORDS) * _WORD))
        self._bytes = memory
        self._words = memory.cast("Q")
        self._signed = memory.cast("q")
        self._doubles = memory.cast("d")

    # ------------------------------------------------------------------ from the parent to its children

    def set_drain(self) -> None:
        """Tell every slot to end after the message in hand."""
        self._words[0] = 1

    def end_drain(self) -> None:
        """Slots go on after all."""
        self._words[0] = 0

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
        """Draining or revoked: no further message may be started."""
        return (self._words[0] or self._words[self._bases[slot]]) != 0

    # ------------------------------------------------------------------ the child's side

    def begin(self, slot: int, pid: int) -> None:
        """A slice begins. What the parent has said meanwhile (revoke, want) stays."""
        base = self._bases[slot]
        self._words[base + _CLIENT] = 0
        self._words[base + _REPORTED] = 0
        self._words[base + _TOOK_IN] = 0
        self.forget_settled(slot)
        self._words[base + _PID] = pid

    def each(
        self, slot: int, lane_index: int, messages: Sequence[Message], until: float
    ) -> Iterator[Message]:
        """Messages one after the other: each runs from when it is given to when the next is asked for.

        That is `running` and `done` for each of them, at a quarter of the price: one store ends a message
        and begins the next. Ends early when there is no room, when no further message may be started, and
        after `until` by time.monotonic(). Whoever leaves it with a message in hand says what became of that:
        `done` or `stopped`.
        """
        words, doubles, base, clock = self._words, self._doubles, self._bases[slot], time.monotonic
        place, since = base + _STATE, base + _SINCE
        idle = words[place] = words[place] & ~_KIND_MASK
        count = idle >> _COUNT_SHIFT & _COUNT_MASK
        laid_out = messages[: MAX_FINISHED - count]
        names = "".join([message._id.ljust(_ID.size, "\0") for message in laid_out])
        self._write(base, count, lane_index, len(laid_out), names.encode())
        running = idle + _NEXT_MESSAGE
        for message in laid_out:
            now = clock()
            if now > until or words[0] or words[base]:
                break
            doubles[since] = now  # of the one before, for a moment, which has ended
            words[place] = running
            yield message
            if words[place] != running:
                return  # somebody has said what became of it, or the slot is another slice's by now
            running += _NEXT_FINISHED
        words[place] = running - _NEXT_MESSAGE  # nothing runs

    def running(self, slot: int, lane_index: int, message_id: bytes, now: float) -> None:
        """A handler is about to be called with this message. `now`: time.monotonic()."""
        state = self._next(slot, lane_index, message_id, now)
        self._words[self._bases[slot] + _STATE] = state + _NEXT_MESSAGE

    def batch_running(self, slot: int, lane_index: int, first: bytes, last: bytes, now: float) -> None:
        """A handler is about to be called with all messages from `first` to `last`."""
        state, base = self._next(slot, lane_index, first, now), self._bases[slot]
        _ID.pack_into(self._bytes, (base + _BATCH_END) * _WORD, last)
        self._words[base + _STATE] = state + (_NEXT | _BATCH)

    def _next(self, slot: int, lane_index: int, message_id: bytes, now: float) -> int:
        """Write what runs next behind what is finished; the state, by which nothing runs."""
        words, base = self._words, self._bases[slot]
        state = words[base + _STATE] & ~_KIND_MASK
        words[base + _STATE] = state
        number = state >> _COUNT_SHIFT & _COUNT_MASK
        words[base + _LANES + number] = lane_index
        _ID.pack_into(self._bytes, (base + _IDS + number * _ID_WORDS) * _WORD, message_id)
        self._doubles[base + _SINCE] = now
        return state

    def done(self, slot: int) -> None:
        """The handler returned for the message that ran; nothing of this slot runs now."""
        words, place = self._words, self._bases[slot] + _STATE
        state = words[place] & ~_KIND_MASK
        words[place] = state + _ONE if (state & _COUNT_FIELD) < _FULL else state

    def ended(
        self,
        slot: int,
        lane_index: int,
        done: Iterable[bytes],
        refused: Iterable[tuple[bytes, bytes]] = (),
        *,
        others: bool = False,
    ) -> bool:
        """A batch has ended, or one message that is not done: ids of the done, (id, record) of the others.

        All of it counts at once. `others`: of the messages that ran together some go on; else nothing of this
        slot runs now. False: there is no room for a record, so settle before the next message is started.
        """
        words, base = self._words, self._bases[slot]
        state = words[base + _STATE]
        number = state >> _COUNT_SHIFT & _COUNT_MASK
        used = self._used(base)
        recorded = 0
        for message_id, record in refused:
            if number + recorded >= MAX_FINISHED or used + len(record) > RECORD_BYTES:
                words[base + _STATE] = state if others else state & ~_KIND_MASK
                return False
            place = base * _WORD + _RECORDS * _WORD + used
            self._bytes[place : place + len(record)] = record
            self._lay_out(base, number + recorded, lane_index, [message_id])
            words[base + _LANES + number + recorded] = (
                lane_index | used << _PLACE_SHIFT | len(record) << _SIZE_SHIFT
            )
            used += len(record)
            recorded += 1
        words[base + _RECORDED] = (words[base + _EPOCH] & _USED_MASK) << _AGE_SHIFT | used
        number += recorded
        ids = list(islice(done, MAX_FINISHED - number))
        self._lay_out(base, number, lane_index, ids)
        words[base + _LANES + number + len(ids)] = lane_index  # of what goes on
        if not others:
            state &= ~_KIND_MASK
        words[base + _STATE] = state + (recorded + len(ids)) * _ONE
        return True

    def _used(self, base: int) -> int:
        """How many bytes of the records are used in this epoch."""
        recorded = self._words[base + _RECORDED]
        mine = recorded >> _AGE_SHIFT == self._words[base + _EPOCH] & _USED_MASK
        return recorded & _USED_MASK if mine else 0

    def stopped(self, slot: int) -> None:
        """The handler was broken off, or nobody knows what became of each: nothing runs now."""
        self._words[self._bases[slot] + _STATE] &= ~_KIND_MASK

    def forget_settled(self, slot: int) -> None:
        """A turn was settled: what was finished is no longer of interest."""
        words, base = self._words, self._bases[slot]
        words[base + _STATE] = (words[base + _STATE] & ~_LOW) + _NEXT
        # After the list was emptied and before it is filled anew: so a reader with an old count notices.
        words[base + _EPOCH] += 1

    def _lay_out(self, base: int, number: int, lane_index: int, ids: Sequence[bytes]) -> None:
        """Write messages into the list, from `number` on, as far as there is room."""
        ids = ids[: MAX_FINISHED - number]
        names = b"".join([id.ljust(_ID.size, b"\0") for id in ids])
        self._write(base, number, lane_index, len(ids), names)

    def _write(self, base: int, number: int, lane_index: int, count: int, names: bytes) -> None:
        """Write so many messages, from `number` on. `names`: their ids, each filled up to its size."""
        lanes, place = base + _LANES + number, (base + _IDS + number * _ID_WORDS) * _WORD
        self._words[lanes : lanes + count] = array("Q", [lane_index]) * count
        self._bytes[place : place + count * _ID.size] = names

    def took_in(self, slot: int) -> None:
        """What the slice before had left is settled; only now may anything be handled."""
        self._words[self._bases[slot] + _TOOK_IN] = 1

    def waiting(self, slot: int, client_id: int) -> None:
        """The child blocks in a read on this connection; CLIENT UNBLOCK ends it."""
        self._words[self._bases[slot] + _CLIENT] = client_id

    def awake(self, slot: int) -> None:
        """The blocking read is over."""
        self._words[self._bases[slot] + _CLIENT] = 0

    def report(
        self,
        slot: int,
        lane_index: int,
        flags: int,
        last_ms: int,
        last_seq: int,
        next_due_ms: int,
        history: int = 0,
    ) -> None:
        """What the slice leaves behind of one of its lanes."""
        words, base = self._words, self._bases[slot]
        place = base + _REPORTS + lane_index * _REPORT_WORDS
        words[base + _REPORTED] &= ~(1 << lane_index)
        words[place] = flags
        words[place + 1] = last_ms
        words[place + 2] = last_seq
        self._signed[place + 3] = next_due_ms
        words[place + 4] = history
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
        finished, refused = self._read_ended(base)
        return SlotView(
            pid=words[base + _PID],
            running=running,
            batch_end=batch_end,
            finished=finished,
            refused=refused,
            reports=self._read_reports(base),
            took_in=words[base + _TOOK_IN] != 0,
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

    def _read_running(self, base: int) -> tuple[InHand | None, str | None]:
        words = self._words
        for _ in range(_TRIES):
            state = words[base + _STATE]
            lane, message_id = self._entry(base, state >> _COUNT_SHIFT & _COUNT_MASK)
            since, last = self._doubles[base + _SINCE], self._id(base + _BATCH_END)
            if words[base + _STATE] != state:
                continue
            kind = state & _KIND_MASK
            running = InHand(lane, message_id, since) if kind else None
            return running, last if kind == _BATCH else None
        return None, None

    def _read_ended(self, base: int) -> tuple[list[tuple[int, str]], list[tuple[int, bytes]]]:
        words = self._words
        for _ in range(_TRIES):
            epoch = words[base + _EPOCH]
            count = words[base + _STATE] >> _COUNT_SHIFT & _COUNT_MASK
            finished, refused = [], []
            for number in range(count):
                word = words[base + _LANES + number]
                if size := word >> _SIZE_SHIFT:
                    place = base * _WORD + _RECORDS * _WORD + (word >> _PLACE_SHIFT & _PLACE_MASK)
                    refused.append((word & _LANE_MASK, bytes(self._bytes[place : place + size])))
                else:
                    finished.append(self._entry(base, number))
            if words[base + _EPOCH] == epoch:
                return finished, refused
        return [], []

    def _entry(self, base: int, number: int) -> tuple[int, str]:
        lane = self._words[base + _LANES + number] & _LANE_MASK
        return lane, self._id(base + _IDS + number * _ID_WORDS)

    def _id(self, place: int) -> str:
        (message_id,) = _ID.unpack_from(self._bytes, place * _WORD)
        return message_id.rstrip(b"\0").decode("ascii", "replace")  # type: ignore[no-any-return]

    def _read_reports(self, base: int) -> list[LaneReport]:
        reported = self._words[base + _REPORTED]
        reports = []
        for lane in range(reported.bit_length()):
            if reported >> lane & 1:
                place = base + _REPORTS + lane * _REPORT_WORDS
                flags, last_ms, last_seq = self._words[place : place + 3]
                due, history = self._signed[place + 3], self._words[place + 4]
                reports.append(LaneReport(lane, flags, last_ms, last_seq, due, history))
        return reports
