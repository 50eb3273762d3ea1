"""Messages of one batch under an `async def` handler: many at once, those of one key one after the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from bus.values import Message
from workers.slices.dispatch import Failed

#: Handlers that one slice runs at once: more would only pile up in whatever they talk to.
CONCURRENCY = 100
#: How often the slice is looked at while all handlers wait. Seconds.
TICK_SECONDS = 0.2


class Watch(Protocol):
    """The part of a slice that running handlers need."""

    def may_begin(self) -> bool:
        """Return whether another message may be started; False from then on."""

    def begin(self, message: Message) -> bool:
        """Note that the message is about to run; False if it is held back behind one that failed."""

    def end(self, message: Message, failed: Failed | None) -> None:
        """Hear that the handler has ended, in this very step of the event loop: no other handler has run
        since.
        """

    def tick(self) -> None:
        """Called after each change, and every TICK_SECONDS."""


class Chains:
    """One chain for each key, in order; a message that is tied to none is a chain of its own."""

    def __init__(self, messages: Iterable[Message], tie_of: Callable[[Message], str]) -> None:
        """`tie_of`: what ties messages together; "" ties to nothing."""
        by_tie: dict[str, deque[Message]] = {}
        self._ready: deque[deque[Message]] = deque()
        for message in messages:
            tie = tie_of(message)
            if tie and tie in by_tie:
                by_tie[tie].append(message)
                continue
            chain = deque([message])
            self._ready.append(chain)
            if tie:
                by_tie[tie] = chain

    async def run(self, handle: Callable[[Message], Awaitable[Failed | None]], watch: Watch) -> bool:
        """Run all messages, as far as the watch lets them; False if some were not started.

        Returns when nothing runs any more. What the watch raises is raised when the handlers that run have
        ended: they finish what they have in hand, though nobody can settle it.
        """
        running: dict[asyncio.Task[None], deque[Message]] = {}
        try:
            while True:
                self._fill(running, handle, watch)
                if not running:
                    return not self._ready
                done, _ = await asyncio.wait(
                    running, timeout=TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    chain = running.pop(task)
                    task.result()
                    if chain:
                        self._ready.append(chain)
                watch.tick()
        except Exception:
            if running:
                await asyncio.wait(running)
            raise

    def _fill(
        self,
        running: dict[asyncio.Task[None], deque[Message]],
        handle: Callable[[Message], Awaitable[Failed | None]],
        watch: Watch,
    ) -> None:
        while self._ready and len(running) < CONCURRENCY and watch.may_begin():
            chain = self._ready.popleft()
            message = chain.popleft()
            if watch.begin(message):
                running[asyncio.ensure_future(_to_its_end(message, handle, watch))] = chain
            elif chain:
                self._ready.append(chain)


async def _to_its_end(
    message: Message, handle: Callable[[Message], Awaitable[Failed | None]], watch: Watch
) -> None:
    # The watch hears of the end here, not when the loop comes round: another handler might end the process
    # in between, and what had ended would be done again.
    watch.end(message, await handle(message))
