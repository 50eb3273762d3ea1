"""Outcomes: what became of each message, kept until a turn records it in Redis.

To *keep* an outcome is to note it in its lane (Lane.done, retry, hold, dead) and in shared memory
(workers.progress). To *settle* it is to have Redis record it, under the lease. Who settles when:

    Turns.take                       every turn settles all that is kept, and fetches
    Turns.settle                     the same without a fetch: the slice ends, or one of the following asks
    Answer.settle_first_portions     what is more than one script may settle, before the turn
    Answer.settle_by_script          what a turn had in its MULTI, where memory is full and refuses that
    Turns.reopen                     what is kept when the connection broke, over the next one
    Handling.settle_between          between two messages, every 200 ms; waits for Redis to come back
    Handling.settle_or_raise         the same while `async def` handlers run; never waits
    Slice.settle_for_the_dead        what the slice before has left, before anything is handled
    Leases.settle_for_the_dead       the same before the lane goes to another worker, from the main process
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson


@dataclass(slots=True)
class Outcomes:
    """The outcomes of one lane, in the form that `turn.lua` takes."""

    done: list[str] = field(default_factory=list)
    retry: list[tuple[str, int, str]] = field(default_factory=list)
    noted: list[tuple[str, str]] = field(default_factory=list)
    held: list[tuple[str, str, str]] = field(default_factory=list)
    dead: list[tuple[str, str, str, int, int]] = field(default_factory=list)
    release: list[str] = field(default_factory=list)
    clear: list[str] = field(default_factory=list)
    trimmed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.done
            or self.retry
            or self.noted
            or self.held
            or self.dead
            or self.release
            or self.clear
            or self.trimmed
        )

    def dump(self, also_done: Sequence[str] = ()) -> bytes:
        return orjson.dumps(
            {
                "done": [*self.done, *also_done],
                "retry": self.retry,
                "noted": self.noted,
                "held": self.held,
                "dead": self.dead,
                "release": self.release,
                "clear": self.clear,
                "trimmed": self.trimmed,
            }
        )
