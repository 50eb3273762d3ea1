"""The batch that a batch handler is called with: messages in order. It may refuse each of them.

Order per key is kept through refusals. A message that is to be tried again holds back the later ones of its
key: they leave the batch, so the handler's loop passes over them, and they are handled when the earlier one
is settled. Where the handler has them already (from a list that it made before, say), the refusal raises
OutOfOrder, and all messages are then handled again, one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, overload

from bus.errors import Reject, Retry
from bus.format.codec import raw_key
from bus.format.partition import key_hash
from bus.values import Message, Ordering


class OutOfOrder(Exception):
    """Raised when a batch handler asks for a retry of a message and has a later one of its key already."""

    def __init__(self, message: Message, later: Message) -> None:
        super().__init__(
            f"{message!r} cannot be tried again in this call, since {later!r}, a later one of its key, was "
            "given to the handler already. Loop over the batch itself, not over a list of it, and call "
            "batch.retry() before the next message: it then passes over those that must wait. All messages "
            "of this call are handled again, one by one."
        )


class Batch(Sequence[Message]):
    """Messages of one lane in the order of their ids."""

    def __init__(self, messages: Sequence[Message], ordering: Ordering) -> None:
        self._messages = list(messages)
        self.ordering: Ordering = ordering
        self._loops: list[Any] = []
        """The iterators that were given out. They see what leaves the list, and say where they are. So a loop
        over the batch costs no more than a loop over a list."""
        self._taken = 0
        """How many of the first messages were taken by index."""
        self._ties: dict[str, list[Message]] | None = None
        """The messages by what ties them together in order; None until that is asked."""
        self.refused: dict[str, Reject | Retry] = {}
        self.passed_over: list[Message] = []
        """The messages that left the batch, unhandled, behind an earlier one of their key."""

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        loop = iter(self._messages)
        self._loops.append(loop)
        return loop

    @overload
    def __getitem__(self, index: int) -> Message: ...

    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...

    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        taken = self._messages[index]
        last = len(self) if isinstance(index, slice) else range(len(self))[index] + 1
        self._taken = max(self._taken, last)
        return taken

    def __contains__(self, message: object) -> bool:
        return message in self._messages

    def reject(self, message: Message, reason: str) -> None:
        """Make this message a dead letter: it can never succeed. The others are not touched."""
        self.refused[message.id] = Reject(reason)

    def retry(self, message: Message, *, delay: float | timedelta | None = None, reason: str = "") -> None:
        """Try this message again after `delay`, seconds or a timedelta (None: as the retry policy says).

        Later messages of its key leave the batch and wait for it, so `for message in batch` passes over them.
        Raises ConfigurationError for a delay that is not valid (see Retry), and OutOfOrder where the handler
        has one of them already. Do not catch these: each message is then handled again, alone, in order. To
        try the whole batch again, raise an exception.
        """
        self.refused[message.id] = Retry(reason, delay=delay)
        given = max([self._taken, *(len(self) - loop.__length_hint__() for loop in self._loops)])
        given_ids = {before.id for before in self._messages[:given]}
        leaving = set()
        for later in self._behind(message):
            if later.id not in given_ids:
                leaving.add(later.id)
            elif later.id not in self.refused:
                raise OutOfOrder(message, later)
        if leaving:
            self.passed_over += [later for later in self._messages if later.id in leaving]
            # In place: the loops that run over it go on with what is left.
            self._messages[given:] = [later for later in self._messages[given:] if later.id not in leaving]

    def check(self) -> None:
        """Check the order once the handler has returned.

        Raises OutOfOrder, also if the handler has caught it.
        """
        waiting = {message.id for message in self.passed_over}
        for tied in self._by_tie().values() if self.refused else ():
            tried_again: Message | None = None
            for message in tied:
                refusal = self.refused.get(message.id)
                if refusal is None and tried_again is not None and message.id not in waiting:
                    raise OutOfOrder(tried_again, message)
                if isinstance(refusal, Retry):
                    tried_again = tried_again or message

    def take_in(self, part: Batch) -> None:
        """Take in what the handler said of these messages, or of some of them, in a batch of their own.

        What it said in an earlier call counts no more, since that was rolled back.
        """
        self.refused = dict(part.refused)
        self.passed_over = list(part.passed_over)

    def _behind(self, message: Message) -> list[Message]:
        """Return the messages that came in this batch and must wait for this one."""
        tied = self._by_tie().get(self._tie(message), [])
        indexes = [index for index, other in enumerate(tied) if other.id == message.id]
        return tied[indexes[0] + 1 :] if indexes else []

    def _by_tie(self) -> dict[str, list[Message]]:
        """Return the messages by what ties them together in order, as they came."""
        if self._ties is None:
            self._ties = {}
            for message in self._messages:
                if tie := self._tie(message):
                    self._ties.setdefault(tie, []).append(message)
        return self._ties

    def _tie(self, message: Message) -> str:
        return key_hash(self.ordering, raw_key(message))
