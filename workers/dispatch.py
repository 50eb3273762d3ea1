"""Handler and middleware → outcome. The only place where exceptions become outcomes."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

from bus.errors import InboxUnavailable, Reject, Retry, Undecodable
from bus.lane import MAX_ERROR
from bus.subscriptions import Handler, Subscription, refuse_awaitable
from bus.values import Message

Middleware = Callable[[Subscription, Handler], Handler]
"""Wraps a handler; called once for each subscription, not for each message."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A message that is not done: to be tried again after `delay` seconds, or a dead letter."""

    kind: Literal["retry", "dead"]
    reason: str
    error: str
    delay: float = 0.0
    exception: BaseException | None = None


class Batch(Sequence[Message]):
    """What a batch handler is called with: messages in order, each of which it may refuse by itself."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages
        self.refused: dict[str, Reject | Retry] = {}

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self._messages)

    def __getitem__(self, index: Any) -> Any:
        return self._messages[index]

    def reject(self, message: Message, reason: str) -> None:
        """This message can never succeed: it becomes a dead letter; the others are not touched by it."""
        self.refused[message.id] = Reject(reason)

    def retry(self, message: Message, *, delay: float | None = None, reason: str = "") -> None:
        """Try this message again after `delay` seconds (None: as the retry policy says)."""
        self.refused[message.id] = Retry(reason, delay=delay)


class Dispatcher:
    """Calls the handler of one subscription and says what became of each message."""

    def __init__(
        self,
        subscription: Subscription,
        middleware: Sequence[Middleware] = (),
        async_middleware: Sequence[Middleware] = (),
        run: Callable[[Coroutine[Any, Any, Any]], Any] = asyncio.run,
    ) -> None:
        """`async_middleware`: wraps an `async def` handler. `run`: runs a coroutine to its end."""
        self.subscription = subscription
        handler: Handler = subscription.handler
        is_async = inspect.iscoroutinefunction(handler)
        self.is_concurrent = is_async and subscription.batch is None
        """Whether messages can be handled by `handle_async`, several at once."""
        self._await = _wrapped(subscription, handler, async_middleware)
        self._call: Handler = (
            (lambda delivery: run(self._await(delivery)))
            if is_async
            else _wrapped(subscription, handler, middleware)
        )

    def handle(self, message: Message) -> Failed | None:
        """Run the handler on one message; None means done. Raises InboxUnavailable."""
        try:
            if message._value is None:
                # Decoded by now, so that an entry nobody can read never reaches a handler.
                message.value  # noqa: B018
            result = self._call(message)
            if result is not None:
                refuse_awaitable(result)
        except InboxUnavailable:
            raise  # no fault of the message, and the handler was not called
        except (Exception, asyncio.CancelledError) as error:
            return self._outcome(message, error)
        return None

    async def handle_async(self, message: Message) -> Failed | None:
        """Run an `async def` handler on one message; None means done."""
        try:
            message.value  # noqa: B018  as in handle()
            await self._await(message)
        except (Exception, asyncio.CancelledError) as error:
            # A handler that was cancelled from inside has not succeeded; nobody cancels it from outside.
            return self._outcome(message, error)
        return None

    def handle_batch(self, messages: Sequence[Message]) -> dict[str, Failed] | None:
        """Run the batch handler; the messages that are not done, by id.

        None: it raised, and nobody knows on which message. They are then to be delivered one by one, so
        that one bad message does not fail its neighbours. Raises InboxUnavailable.
        """
        failed: dict[str, Failed] = {}
        readable = []
        for message in messages:
            try:
                message.value  # noqa: B018  as in handle()
            except Undecodable as error:
                failed[message.id] = self._outcome(message, error)
            else:
                readable.append(message)
        if not readable:
            return failed
        batch = Batch(readable)
        try:
            refuse_awaitable(self._call(batch))
        except InboxUnavailable:
            raise  # as in handle()
        except (Exception, asyncio.CancelledError) as error:
            if len(messages) > 1:
                return None
            return {readable[0].id: self._outcome(readable[0], error)}
        for message in readable:
            if message.id in batch.refused:
                failed[message.id] = self._outcome(message, batch.refused[message.id])
        return failed

    def _outcome(self, message: Message, error: BaseException) -> Failed:
        subscription = self.subscription
        policy = subscription.retry
        reason = _reason(error)
        if isinstance(error, Reject):
            text = _clean(error.reason)
            return Failed("dead", text, text, exception=error)
        if isinstance(error, Undecodable):
            text = _clean(f"undecodable: {error}")
            return Failed("dead", text, text, exception=error)
        text = _trace(error)
        final = isinstance(error, subscription.dead_on) or not isinstance(
            error, (*subscription.retry_on, Retry, asyncio.CancelledError)
        )
        if final:
            return Failed("dead", reason, text, exception=error)
        if message.attempt >= policy.attempts:
            return Failed(
                "dead", f"{reason} (attempt {message.attempt} of {policy.attempts})", text, exception=error
            )
        asked = error.delay if isinstance(error, Retry) else None
        delay = policy.delay_after(message.attempt) if asked is None else max(0.0, asked)
        return Failed("retry", reason, text, delay, exception=error)


def _wrapped(subscription: Subscription, handler: Handler, middleware: Sequence[Middleware]) -> Handler:
    return reduce(lambda inner, wrap: wrap(subscription, inner), reversed(middleware), handler)


def _trace(error: BaseException) -> str:
    """The traceback, its last MAX_ERROR characters: the end says where it broke."""
    return _clean("".join(traceback.format_exception(error)))[-MAX_ERROR:]


def _clean(text: object) -> str:
    """The text as UTF-8 can hold it: an error must never be the reason why a message cannot be settled."""
    return str(text).encode("utf-8", "replace").decode()


def _reason(error: BaseException) -> str:
    """Like `ValueError: no`, also of an exception whose own text cannot be made."""
    try:
        return _clean(f"{type(error).__name__}: {error}")
    except Exception:
        return type(error).__name__
