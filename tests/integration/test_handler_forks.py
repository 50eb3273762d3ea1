"""A process that an atomic handler forks off leaves the transaction of its parent alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bus.consuming.subscriptions import Subscription
from bus.format import codec
from bus.models import AuditRecord, InboxRow
from bus.values import Message
from workers.handler_forks import handler_forks
from workers.middleware import default_middleware
from workers.slices.dispatch import Dispatcher


def _raise() -> None:
    raise ValueError("told to fail")


#: How the child leaves the handler, and the exit code that its parent is to see.
LEAVES: dict[str, tuple[Callable[[], object], int]] = {
    "returns": (lambda: None, 0),
    "exits": (lambda: sys.exit(7), 7),
    "raises": (_raise, 1),
}


@pytest.mark.parametrize("how", LEAVES)
@pytest.mark.parametrize("batch", [None, 10])
def test_a_child_of_an_atomic_handler_neither_commits_nor_rolls_back_for_its_parent(
    database: str, how: str, batch: int | None
) -> None:
    leave, wanted = LEAVES[how]
    codes: list[int] = []
    here = os.getpid()

    def handle(delivery: Any) -> None:
        # Given a handler that has an effect on both sides of a fork
        AuditRecord.objects.create(source="cli", verb="before")
        pid = os.fork()
        if pid == 0:
            leave()
            return
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        AuditRecord.objects.create(source="cli", verb="after")

    subscription = Subscription(topic="orders", group="stock", handler=handle, atomic="default", batch=batch)
    dispatcher = Dispatcher(subscription, default_middleware)
    message = Message("orders", 0, "1700-1", [b"v", b"1"], codec.decode, 1, None, "bus:1")
    handler_forks.begin_slice()
    # When it runs
    try:
        failed: Any = dispatcher.handle(message) if batch is None else dispatcher.handle_batch([message])
    finally:
        if os.getpid() != here:
            os._exit(99)  # or a second copy of the tests would go on
    # Then the child has ended as it asked to, and the parent's effect is there as a whole, with its row
    assert codes == [wanted]
    assert not failed
    assert list(AuditRecord.objects.order_by("pk").values_list("verb", flat=True)) == ["before", "after"]
    assert InboxRow.objects.count() == 1


def test_a_slice_begins_anew_in_a_process_that_was_forked_off_before() -> None:
    # Given a pool process: forked off, and then given slices of its own
    handler_forks.begin_slice()
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            forked = handler_forks.is_child
            handler_forks.begin_slice()
            handler_forks.end_child(ValueError("not to be left"))
            code = 0 if forked and not handler_forks.is_child else 8
        finally:
            os._exit(code)
    # Then it is at home
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not handler_forks.is_child
