"""`pending list`."""

from __future__ import annotations

from itertools import islice
from typing import Any

import click

from bus.cli.kinds import PARTITION, Branch, of_group
from bus.cli.session import Session, pass_session
from bus.format.display import cut
from bus.operating import pending as pendings
from bus.operating.pending import PendingMessage
from bus.terminal.output import Table, answer, count, duration_words, remark, time_words
from bus.terminal.values import key_words, message_record

#: Characters of an error in a table: the end of it, which says what went wrong.
_SHORT = 80

pending = Branch("pending", help="Look at messages that were given and are not settled.")


@pending.command("list")
@of_group
@click.option("--partition", type=PARTITION)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@pass_session
def list_pending(session: Session, topic: str, group: str, partition: int | None, limit: int) -> None:
    """The pending messages of a group: in hand, retrying, or held back behind one that fails."""
    walk = pendings.find(session.bus, topic, group, partition=partition)
    messages = list(islice(walk, limit))
    answer(session.json, [_record(pending) for pending in messages], _table(messages))
    if not session.json and next(walk, None) is not None:
        remark(f"There are more than {count(limit)}: see --limit.")


def _table(messages: list[PendingMessage]) -> Table:
    rows = [
        [
            f"{pending.message.partition}/{pending.message.id}",
            key_words(pending.message),
            pending.state,
            count(pending.attempts),
            time_words(pending.due, "-"),
            duration_words(pending.age),
            pending.lane,
            _last_line(pending.error),
        ]
        for pending in messages
    ]
    columns = ["message", "key", "state", "attempts", "due (UTC)", "age", "lane", "error"]
    return Table(columns, rows, frozenset({"attempts", "age"}))


def _last_line(error: str) -> str:
    lines = error.strip().splitlines()
    return cut(lines[-1], _SHORT) if lines else "-"


def _record(pending: PendingMessage) -> dict[str, Any]:
    return {
        "partition": pending.message.partition,
        "message_id": pending.message.id,
        "state": pending.state,
        "lane": pending.lane,
        "attempts": pending.attempts,
        "error": pending.error,
        "first": pending.first,
        "due": pending.due,
        "age": pending.age,
        **message_record(pending.message),
    }
