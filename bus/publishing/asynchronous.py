"""Publishing from an event loop, by the futures of a producer: one wire, no second client.

Nothing here blocks the loop. What may wait for Redis (the spec of a topic that was never asked for) runs in a
thread, and a full buffer is awaited.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from bus.errors import BufferFull, BusError
from bus.publishing.future import PublishFuture, call_in_loop
from bus.publishing.options import BulkOptions, PublishOptions
from bus.publishing.producer import Producer
from bus.values import Receipt

if TYPE_CHECKING:
    from bus.client import Bus

#: The most messages of one apublish_many that are on their way. Then each new one waits for the oldest.
_WINDOW = 2000
#: After so many messages the other tasks of the loop get some time.
_MESSAGES_AT_A_STRETCH = 200


class AsyncPublisher:
    """`apublish` and `apublish_many` of one bus, for any number of event loops and threads."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        room = max(32 * 1024 * 1024, 2 * bus.settings.max_message_bytes)
        self._producer = Producer(bus, linger=0, on_full="raise", buffer_bytes=room)

    async def publish(self, topic: str, value: Any, options: PublishOptions) -> Receipt:
        """Store one message and return its receipt. Raises what `bus.publish` raises.

        If the task is cancelled, the message may still be stored.
        """
        future = await self._send(topic, value, options)
        return await future

    async def publish_many(
        self, topic: str, values: Iterable[Any] | AsyncIterable[Any], options: BulkOptions
    ) -> int:
        """Store messages in their order and return how many. `values` may be asynchronous.

        Raises what `bus.publish_many` raises, when all messages before the one at fault are stored or failed.
        """
        waiting: deque[PublishFuture] = deque()
        stored = 0
        failure: Exception | None = None
        try:
            async for value in _each(values):
                waiting.append(await self._send(topic, value, options.of(value)))
                if len(waiting) >= _WINDOW:
                    await waiting.popleft()
                    stored += 1
        except Exception as error:
            failure = error
        while waiting:
            try:
                await waiting.popleft()
                stored += 1
            except BusError as error:
                failure = failure or error
        if failure is not None:
            failure.add_note(f"{stored:,} messages of this call are known to be stored.")
            raise failure
        return stored

    def close(self) -> None:
        """Write what is buffered, and end the thread of the producer."""
        self._producer.close()

    async def _send(self, topic: str, value: Any, options: PublishOptions) -> PublishFuture:
        while True:
            if self._bus.registry.known(topic) is None:
                await asyncio.to_thread(self._bus.registry.spec, topic)
            try:
                return self._producer.send(topic, value, **options._asdict())
            except BufferFull:
                await self._room()

    async def _room(self) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        self._producer.when_room(lambda: call_in_loop(loop, room.set))
        await room.wait()


async def _each(values: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(values, AsyncIterable):
        async for value in values:
            yield value
        return
    for number, value in enumerate(values):
        if number % _MESSAGES_AT_A_STRETCH == 0:
            await asyncio.sleep(0)
        yield value
