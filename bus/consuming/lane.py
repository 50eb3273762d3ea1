"""One lane: what takes delivery in a partition for a group, and what becomes of each message.

A lane is worked on by at most one slice at a time, the holder of its lease. This module keeps what
that slice must know: which keys are failing, how often each message was tried, what is to be settled.
`bus.consuming.question` makes commands of that. It does no I/O of its own.

Order through failures. When a message of a key fails, it becomes the *head* of that key: it waits in
the retry zset, and every later message of the key is held back in the held zset, unhandled. When
the head is settled, the next messages of its key are released into the retry zset, due at once, in
their order, before anything newer of that key can be fetched. A failing key holds back only itself;
with ordering "partition" the whole partition counts as one key. Keyless messages hold back nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from bus.consuming.lane_state import LaneState
from bus.consuming.outcomes import Outcomes
from bus.consuming.waiting import Waiting
from bus.errors import BusError
from bus.format import codec
from bus.format import state as states
from bus.format.keys import PartitionKeys, pad_id
from bus.format.partition import key_hash
from bus.format.state import MAX_ERROR, Failure
from bus.moments import whole
from bus.safety.unreadable import Unreadable, tell
from bus.streams.commands import text
from bus.streams.wire import Link
from bus.values import ORDERINGS, Message, Ordering, Source, id_pair, known_id

_ORDERINGS = frozenset(ordering.encode() for ordering in ORDERINGS)


class Lane:
    """The state of one lane within a slice."""

    __slots__ = (
        "acks", "closed", "era", "failing", "failures", "held", "history", "id", "keys", "last_id", "lease",
        "link", "lost", "marked", "mended", "next_due", "ordering", "outcomes", "position", "prove",
        "recovering", "retrying", "seen", "suspect", "trouble",
    )  # fmt: skip

    def __init__(self, state: LaneState, keys: PartitionKeys) -> None:
        """`state`: as the main process hands it over. `keys`: of the partition."""
        self.id = state.id
        self.keys = keys
        self.lease = state.lease
        self.ordering: Ordering = state.ordering
        self.link: Link | None = None
        """The connection over which all of this was learnt. Over another one nothing of it counts."""
        self.history = state.history
        """The history of the server in which left-overs were looked for (see Link.history)."""
        # In unordered groups other lanes move the position too.
        self.last_id = None if state.ordering == "none" else state.last_id
        """The last id that the group was given here; None: it must be asked for."""
        self.seen = state.seen
        """The greatest position of the group that was ever known. A server that says less has lost data."""
        self.marked: str | None = None
        """The mark that was written last."""
        self.recovering = state.recover
        """True: left-overs in the pending list come before anything new."""
        self.position = "-"
        """The id at which the search for left-overs goes on."""
        self.mended = False
        """True: what is known of waiting messages fits together, or need not be looked at."""
        self.lost = False
        self.closed = state.closed
        """True: fetch nothing new. Another ordering is declared, and waits until nothing is pending."""
        self.trouble: BusError | None = None
        """The error, if a key of this lane holds something foreign: then the lane counts as lost."""
        self.era = ""
        """Which messages the ids stand for (see bus.transactions.inbox); "": a group older than eras."""
        self.prove: Callable[[], bool] | None = None
        """Asks Redis whether the lease is still ours (see Message.lease_valid)."""
        self.failing: dict[str, set[tuple[int, int]]] = {}
        """Key hash → ids of that key in the retry zset."""
        self.failures: dict[str, Failure] = {}
        self.retrying = 0
        self.held = 0
        self.next_due: int | None = None
        """When the earliest retry is due, ms by the server's clock."""
        self.suspect: tuple[int, int] | None = None
        """Left-overs up to this id may have killed a worker: they are handled one by one."""
        self.acks: list[str] = []
        self.outcomes = Outcomes()

    def go_on(self, state: LaneState) -> None:
        """Go on where the last slice in this process ended. `state`: as the main process hands it over."""
        self.closed = state.closed
        if state.recover:
            self.start_recovery()

    # ------------------------------------------------------------------ what Redis knows

    def doubt(self, link: Link) -> None:
        """Forget what was learnt over another connection than this one.

        In another history of the server something may be pending that was settled in ours, or the other way
        round. So left-overs are looked for there, and also if the server does not say which history it is.
        """
        if self.link is link:
            return
        self.link = self.marked = None
        if not link.history or self.history != link.history:
            self.last_id = None
            self.start_recovery()
        self.history = link.history

    def learn_position(self, position: str) -> bool:
        """Take in how far the group is by the server. False if it was further: the data are older."""
        self.last_id = position
        if self.seen is not None and id_pair(position) < id_pair(self.seen):
            return False
        self.seen = position
        return True

    def new_mark(self) -> str | None:
        """Return the id up to which this turn settles all but what waits; None: as before, or unknown.

        To be asked when nothing fetched is in hand. In unordered groups other lanes are at work, too.
        """
        if self.recovering or self.ordering == "none" or self.last_id == self.marked:
            return None
        return self.last_id

    def load(self, waiting: Waiting) -> None:
        """Take in the state hash, the retry zset, and the size of the held zset."""
        stored = states.read(self.keys.state(self.id.group), self.id.lane, waiting.state)
        for unreadable in stored.unreadable:
            tell(unreadable)
        self.failures, self.failing = stored.failures, {}
        suspects = (self.suspect, stored.suspect)  # the former: of a process that has just died
        self.suspect = max((suspect for suspect in suspects if suspect is not None), default=None)
        self.learn_era(stored.era)
        self.learn_ordering(stored.ordering)
        retries = waiting.retries
        for raw in retries[::2]:
            message_id = known_id(raw)
            failure = None if message_id is None else self.failures.get(message_id)
            if failure is not None and failure.hash:
                self.failing.setdefault(failure.hash, set()).add(id_pair(raw))
        self.next_due = max(0, min(map(whole, retries[1::2]))) if retries else None
        self.retrying, self.held = len(set(retries[::2])), waiting.held  # a scan may bring some twice
        # Also at other times: something is held, and nothing it could be held behind fails.
        self.mended = not self.recovering and bool(self.failing or not self.held)

    def learn_era(self, raw: bytes | None) -> None:
        """Take in the field `era` of the state hash. An unreadable one changes nothing."""
        era = states.read_era(self.keys.state(self.id.group), raw)
        if isinstance(era, Unreadable):
            tell(era)
        else:
            self.era = era

    def learn_era_and_ordering(self, raw: Sequence[bytes | None]) -> None:
        """Take in the fields `era` and `ordering` of the state hash."""
        self.learn_era(raw[0])
        self.learn_ordering(raw[1])

    def learn_ordering(self, raw: bytes | None) -> None:
        """Take in the field `ordering` of the state hash: under another ordering no lease of ours counts.

        An unreadable one counts as not there (see bus.topics.reordering.answer).
        """
        if raw in _ORDERINGS and raw != self.ordering.encode():
            self.lease = ""

    def learn_next_due(self, retries: Sequence[bytes]) -> None:
        """Take in the retry that is due first, from the beginning of the zset with its scores."""
        self.next_due = max(0, whole(retries[1])) if retries else None

    def learn_settled(
        self, released: Sequence[Sequence[bytes]], retrying: int, held: int, next_due: int
    ) -> None:
        """Take in the reply of `turn.lua`: the outcomes are settled."""
        for hash_ in self.outcomes.release:
            if not self.failing.get(hash_):
                self.failing.pop(hash_, None)
        for message_id, raw_hash in released:
            hash_ = raw_hash.decode()
            self.failing.setdefault(hash_, set()).add(id_pair(message_id))
            self.failures.setdefault(message_id.decode(), Failure(hash_)).hash = hash_
        self.retrying, self.held = retrying, held
        self.next_due = next_due if next_due >= 0 else None
        self.outcomes = Outcomes()

    # ------------------------------------------------------------------ left-overs and loss

    def start_recovery(self) -> None:
        """Have left-overs looked for: something that was fetched here was not run."""
        self.recovering, self.position = True, "-"

    def end_recovery(self) -> None:
        """Note that all left-overs were found. What comes now is new, or waits for its retry."""
        self.recovering, self.position = False, "-"
        self._clear_suspect()

    def lose(self, trouble: BusError | None = None) -> None:
        """Work on it no more: the lease is not ours, or a key holds something foreign (`trouble`)."""
        self.lost = True
        if trouble is not None:
            self.trouble = trouble

    # ------------------------------------------------------------------ messages

    def fetched(self, entries: Sequence[Sequence[Any]]) -> list[Message]:
        """Return new entries as messages. The group is at the last of them now."""
        self.last_id = self.seen = text(entries[-1][0])
        return self.messages(entries)

    def messages(self, entries: Sequence[Sequence[Any]]) -> list[Message]:
        """Return the entries of the stream as messages."""
        if not self.failures:
            source = Source(self.id.topic, self.id.partition, codec.decode, self.prove, self.era)
            messages = Message.several(source, entries, codec.FOR_GROUP)
            if messages is not None:
                return messages
        if codec.FOR_GROUP in [entry[1][-2] for entry in entries]:
            entries = [entry for entry in entries if self._is_for_us(entry)]
        return [self._message(entry[0].decode(), entry[1]) for entry in entries]

    def _is_for_us(self, entry: Sequence[Any]) -> bool:
        """False for a copy that redrive.lua made for another group: here it is settled, unhandled."""
        message_id, fields = entry
        if len(fields) < 4 or fields[-2] != codec.FOR_GROUP or fields[-1] == self.id.group.encode():
            return True
        if not codec.is_group(fields[-1]):
            return True  # nobody's copy: it becomes a dead letter
        self.done_id(message_id.decode())
        return False

    def _message(self, message_id: str, fields: list[bytes]) -> Message:
        failure = self.failures.get(message_id)
        attempt = failure.attempts + 1 if failure else 1
        where = (self.id.topic, self.id.partition, message_id)
        return Message(*where, fields, codec.decode, attempt, self.prove, self.era)

    def hash_of(self, message: Message) -> str:
        """Return what ties messages together in order: equal for messages of one key; "" ties to nothing."""
        return key_hash(self.ordering, codec.raw_key(message))

    def must_wait(self, message: Message) -> bool:
        """True if an earlier message of the same key is failing, so that this one is held back."""
        if not self.failing:
            return False
        waiting = self.failing.get(self.hash_of(message))
        return waiting is not None and (not waiting or id_pair(message.id) > min(waiting))

    def is_smooth(self) -> bool:
        """True if nothing here fails, waits or is suspect: messages may run without a look at each."""
        return not (self.failures or self.failing or self.suspect)

    def is_suspect(self, message: Message) -> bool:
        """Return whether a message may have killed a worker."""
        return self.suspect is not None and id_pair(message.id) <= self.suspect

    def may_fetch(self, held_limit: int) -> bool:
        """Return whether new messages may be fetched: none past the held limit or a failing partition."""
        if self.closed or (self.ordering == "partition" and self.failing):
            return False
        # What this turn settles counts too, or a fetch in the same turn would go a whole batch further.
        unsettled = len(self.outcomes.held) + len(self.outcomes.retry)
        return self.held + self.retrying + unsettled < held_limit

    # ------------------------------------------------------------------ outcomes

    def done(self, message: Message) -> None:
        """Keep a message as done: its handler returned."""
        self.done_id(message.id)

    def retry(self, message: Message, delay: float, error: str, now: int) -> bytes:
        """Have a message tried again `delay` seconds after it is settled. `now`: ms, of its first failure.

        Returns what `refused` takes, in case this process dies before it is settled.
        """
        failure = self._failed(message, error, now)
        return self._retry(message.id, max(0, round(delay * 1000)), failure)

    def _retry(self, message_id: str, ms: int, failure: Failure) -> bytes:
        self.failures[message_id] = failure
        if failure.hash:
            self.failing.setdefault(failure.hash, set()).add(id_pair(message_id))
            self._hold_later(failure.hash, id_pair(message_id))
        self.outcomes.retry.append((message_id, ms, failure.dump()))
        return orjson.dumps(("retry", *self.outcomes.retry[-1]))

    def hold(self, message: Message) -> None:
        """Hold a message back, unhandled, behind an earlier message of its key."""
        hash_ = self.hash_of(message)
        self.failing[hash_].discard(id_pair(message.id))
        self.outcomes.held.append((message.id, pad_id(message.id), hash_))
        self._hold_later(hash_, id_pair(message.id))

    def fails_before(self, hash_: str, first: tuple[int, int]) -> bool:
        """True if messages of this key fail, all of them before the first that is held back."""
        return max(self.failing.get(hash_) or [first]) < first

    def untangle(self, hash_: str, first: tuple[int, int]) -> None:
        """Hold what fails of this key later than `first`, which is held back itself.

        If nothing fails before `first`, the next turn lets it go.
        """
        failing = self.failing.setdefault(hash_, set())  # until something is out, what is newer waits
        self._hold_later(hash_, first)
        if not failing:
            self.outcomes.release.append(hash_)

    def _hold_later(self, hash_: str, first: tuple[int, int]) -> None:
        """Hold again what was released of this key after `first`, or it would overtake what is held."""
        later = sorted(pair for pair in self.failing[hash_] if pair > first)
        for ms, seq in later:
            message_id = f"{ms}-{seq}"
            self.outcomes.held.append((message_id, pad_id(message_id), hash_))
        self.failing[hash_].difference_update(later)

    def dead(self, message: Message, reason: str, error: str, now: int) -> bytes:
        """Give a message up: it becomes a dead letter. Returns what `refused` takes."""
        failure = self._failed(message, error, now)
        return self._dead(message.id, reason[:MAX_ERROR], failure)

    def _dead(self, message_id: str, reason: str, failure: Failure) -> bytes:
        self.failures[message_id] = failure
        self.outcomes.dead.append((message_id, reason, failure.error, failure.attempts, failure.first))
        self._leave(message_id)
        return orjson.dumps(("dead", message_id, reason, failure.dump()))

    def refused(self, record: bytes) -> None:
        """Take in what became of a message whose process died before it could settle it."""
        kind, message_id, detail, failure = orjson.loads(record)
        recorded = Failure.load(failure.encode(), self.keys.state(self.id.group), message_id)
        (self._retry if kind == "retry" else self._dead)(message_id, detail, recorded)

    def done_id(self, message_id: str) -> None:
        """Keep the message of this id as done: its handler returned, here or in a process that died."""
        if message_id in self.failures:
            self.outcomes.done.append(message_id)
            self._leave(message_id)
        else:
            self.acks.append(message_id)

    def blame(self, message_id: str, reason: str, attempts: int | None, now: int) -> None:
        """Count an attempt for a message that killed its process; after `attempts` it is a dead letter."""
        failure = self.failures.setdefault(message_id, Failure(""))
        if not failure.noted:
            failure.attempts += 1
        failure.noted = False
        failure.error = reason
        failure.first = failure.first or now
        if attempts is None or failure.attempts < attempts:
            self.outcomes.noted.append((message_id, failure.dump()))
        else:
            self.outcomes.dead.append((message_id, reason, reason, failure.attempts, failure.first))
            self._leave(message_id)

    def _clear_suspect(self) -> None:
        """Suspect nothing any more, once no retry is left that may have killed a worker either."""
        suspect = self.suspect
        if suspect is None or self.recovering:
            return
        if not any(id_pair(message_id) <= suspect for message_id in self.failures):
            self.suspect = None
            self.outcomes.clear.append(f"suspect:{self.id.lane}")

    def note(self, message: Message, error: str, now: int) -> None:
        """Record the attempt before the handler runs, in case it kills the whole worker."""
        failure = self._failed(message, error, now)
        failure.noted = True
        self.outcomes.noted.append((message.id, failure.dump()))

    def _failed(self, message: Message, error: str, now: int) -> Failure:
        failure = self.failures.get(message.id)
        if failure is None:
            failure = self.failures[message.id] = Failure("")
        failure.hash = failure.hash or self.hash_of(message)
        failure.attempts = message.attempt
        failure.error = error[:MAX_ERROR]
        failure.noted = False
        failure.first = failure.first or now
        return failure

    def _leave(self, message_id: str) -> None:
        """Let a message leave for good. If it was the last of its key in the retry zset, release the next."""
        failure = self.failures.pop(message_id)
        self._clear_suspect()
        waiting = self.failing.get(failure.hash)
        if waiting is not None:
            waiting.discard(id_pair(message_id))
            if not waiting:
                self.outcomes.release.append(failure.hash)

    def drop_trimmed(self, message_id: str) -> None:
        """Drop a retrying message that was trimmed away: its key goes on with the next."""
        self.outcomes.trimmed.append(message_id)
        self._leave(message_id)
