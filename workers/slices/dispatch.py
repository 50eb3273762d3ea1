"""Calls handlers through their middleware. The only place where exceptions become outcomes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

from bus.consuming.handlers.running import kind_of, refuse_unrun
from bus.consuming.lane import Lane
from bus.consuming.subscriptions import Handler, Subscription
from bus.errors import InboxUnavailable, Reject, Retry, Undecodable
from bus.moments import delay_seconds
from bus.safety.complaints import Complaints
from bus.values import Message, Ordering
from workers.batch import Batch, OutOfOrder
from workers.handler_forks import handler_forks
from workers.middleware import Middleware
from workers.slices import traces

complaints = Complaints(logging.getLogger("jitney.workers"))


@dataclass(frozen=True, slots=True)
class Failed:
    """The outcome of a message that is not done: "retry" after `delay` seconds, "dead", or "behind": not
    handled, since an earlier one of its key is to be tried again.
    """

    kind: Literal["retry", "dead", "behind"]
    reason: str = ""
    error: str = ""
    delay: float = 0.0
    exception: BaseException | None = None


_BEHIND = Failed("behind")


class Dispatcher:
    """Calls the handler of one subscription and says what became of each message."""

    def __init__(
        self,
        subscription: Subscription,
        middleware: Sequence[Middleware] = (),
        async_middleware: Sequence[Middleware] = (),
        run: Callable[[Coroutine[Any, Any, Any]], Any] = asyncio.run,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        """`async_middleware`: wraps an `async def` handler. `run`: runs a coroutine to its end.

        `is_ending`: whether somebody ends this process, by an exception that a signal has raised: nobody
        knows what became of the message in hand then.
        """
        self.subscription = subscription
        handler: Handler = subscription.handler
        is_async = kind_of(handler) == "coroutine"
        self.is_concurrent = is_async and subscription.batch is None
        """True if `handle_async` can handle messages, several at once."""
        self._run = run
        self._is_ending = is_ending
        self._await = _wrapped(subscription, handler, async_middleware)
        self._call: Handler = (
            self._run_to_its_end if is_async else _wrapped(subscription, handler, middleware)
        )

    def handle(self, message: Message) -> Failed | None:
        """Run the handler on one message; None means done. Raises InboxUnavailable."""
        try:
            if message._value is None:
                # Decoded by now, so that an entry nobody can read never reaches a handler.
                message.value  # noqa: B018
            result = self._call(message)
            if result is not None:
                refuse_unrun(result)
        except BaseException as error:
            if self._is_not_begun(error):
                raise
            return self._outcome(message, error)
        return None

    def handle_each(self, messages: Iterable[Message], lane: Lane) -> tuple[Message, Failed] | None:
        """Run the handler on one message after the other, without a call for each; `lane` keeps what is done.

        Returns the first that is not done, and ends there; None: there is none. Ends early if the lane was
        lost: a handler has asked. Raises InboxUnavailable.
        """
        call, done = self._call, lane.acks.append
        for message in messages:
            try:
                if message._value is None:
                    message.value  # noqa: B018  as in handle()
                result = call(message)
                if result is not None:
                    refuse_unrun(result)
            except BaseException as error:
                if self._is_not_begun(error):
                    raise
                return message, self._outcome(message, error)
            done(message._id)
            if lane.lost:
                break
        return None

    async def handle_async(self, message: Message) -> Failed | None:
        """Run an `async def` handler on one message; None means done."""
        try:
            message.value  # noqa: B018  as in handle()
            result = await self._await(message)
            if result is not None:
                refuse_unrun(result)
        except BaseException as error:
            # A handler that was cancelled from inside has not succeeded; nobody cancels it from outside.
            return self._outcome(message, error)
        return None

    def _run_to_its_end(self, delivery: Any) -> Any:
        """Run a handler in the event loop, whose own life no exception out of it may touch."""

        async def guarded() -> tuple[Any, BaseException | None]:
            try:
                return await self._await(delivery), None
            except BaseException as error:
                return None, error

        result, raised = self._run(guarded())
        if raised is not None:
            raise raised
        return result

    def handle_batch(
        self, messages: Sequence[Message], ordering: Ordering | None = None
    ) -> dict[str, Failed] | None:
        """Run the batch handler; the messages that are not done, by id.

        `ordering`: the one in effect, where that is not the subscription's (see bus.topics.reordering).

        None: it raised, and nobody knows on which message; or it has handled a message that should have
        waited. They are then to be delivered one by one, so that one bad message does not fail its
        neighbours. Raises InboxUnavailable.
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
        batch = Batch(readable, ordering or self.subscription.ordering)
        try:
            refuse_unrun(self._call(batch))
            batch.check()
        except BaseException as error:
            if self._is_not_begun(error):
                raise
            if len(messages) > 1 and not self._is_ending():
                if isinstance(error, OutOfOrder):
                    name = self.subscription.handler_name
                    complaints.say(name, "%s: %s", name, error, level=logging.ERROR)
                return None
            return {readable[0].id: self._outcome(readable[0], error)}
        for message in readable:
            if message.id in batch.refused:
                failed[message.id] = self._outcome(message, batch.refused[message.id])
        for message in batch.passed_over:
            failed[message.id] = _BEHIND
        return failed

    def heed_end(self) -> None:
        """End this process if it must end now, after somebody was told of an outcome. What that raised was
        kept back.

        Raises SystemExit if this process is being ended; a process that was forked off meanwhile ends here.
        """
        handler_forks.end_child()
        if self._is_ending():
            raise SystemExit(1)

    def _is_not_begun(self, error: BaseException) -> bool:
        """Return True if the message is not at fault: the inbox cannot be used, and the handler was not
        called.
        """
        return (
            self.subscription.atomic is not None and isinstance(error, InboxUnavailable) and not error.begun
        )

    def _outcome(self, message: Message, error: BaseException) -> Failed:
        """Return what an exception means for its message.

        Raises SystemExit if this process is being ended, and nothing else, whatever the exception is made of.
        """
        try:
            failed = self._judged(message, error)
        except BaseException:
            failed = self._by_policy(message, traces.name(error), traces.name(error), None, error)
        if self._is_ending():
            # Also where it is no SystemExit: what a handler raises while it is torn down is not its failure.
            raise error if isinstance(error, SystemExit) else SystemExit(1) from error
        return failed

    def _judged(self, message: Message, error: BaseException) -> Failed:
        subscription = self.subscription
        reason = traces.reason(error)
        if isinstance(error, Reject):
            text = traces.clipped(getattr(error, "reason", error))  # a subclass may lack it
            return Failed("dead", text, text, exception=error)
        if isinstance(error, Undecodable):
            text = traces.clipped(f"undecodable: {error}")
            return Failed("dead", text, text, exception=error)
        text = traces.kept(error)
        # What is no Exception (SystemExit, KeyboardInterrupt, CancelledError, a panic in Rust) says nothing
        # about the message: it is tried again.
        final = isinstance(error, subscription.dead_on) or (
            isinstance(error, Exception) and not isinstance(error, (*subscription.retry_on, Retry))
        )
        if final:
            return Failed("dead", reason, text, exception=error)
        # A subclass may lack the delay, and anybody may have set it to anything.
        asked = delay_seconds(getattr(error, "delay", None)) if isinstance(error, Retry) else None
        return self._by_policy(message, reason, text, asked, error)

    def _by_policy(
        self, message: Message, reason: str, text: str, asked: float | None, error: BaseException
    ) -> Failed:
        """Return another attempt, after `asked` seconds if given; a dead letter if this was the last."""
        policy = self.subscription.retry
        if message.attempt >= policy.attempts:
            return Failed(
                "dead", f"{reason} (attempt {message.attempt} of {policy.attempts})", text, exception=error
            )
        delay = policy.delay_after(message.attempt) if asked is None else max(0.0, asked)
        return Failed("retry", reason, text, delay, exception=error)


def _wrapped(subscription: Subscription, handler: Handler, middleware: Sequence[Middleware]) -> Handler:
    return reduce(lambda inner, wrap: wrap(subscription, inner), reversed(middleware), handler)
