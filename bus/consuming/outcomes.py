"""Outcomes that are not settled yet: done, to be tried again, held back, or dead."""

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
