"""`pending list`."""

from __future__ import annotations

from itertools import islice
from typing import Any

import click

from bus.cli.kinds import GROUP, PARTITION, TOPIC, Branch
from bus.cli.session import Session, pass_session
from bus.operating import pending as pendings
from bus.operating.pending import PendingMessage
from bus.terminal.output import Table, answer, count, duration_words, remark, time_words
from bus.terminal.values import key_words, message_record

#: Characters of an error in a table: the end of it, which says what went wrong.
_SHORT = 80

pending = Branch("pending", help="Look at messages that were given and are not settled.")


@pending.command("list")
@click.argument("topic", type=TOPIC)
@click.argument("group", type=GROUP)
@click.option("--partition", type=PARTITION)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@pass_session
def list_pending(session: Session, topic: str, group: str, partition: int | None, limit: int) -> None:
    """The pending messages of a group: in hand, retrying, or held back behind one that fails."""
    walk = pendings.find(session.bus, topic, group, partition=partition)
    found = list(islice(walk, limit))
    answer(session.json, [_record(one) for one in found], _table(found))
    if not session.json and next(walk, None) is not None:
        remark(f"There are more than {count(limit)}: see --limit.")


def _table(found: list[PendingMessage]) -> Table:
    rows = [
        [
            f"{one.message.partition}/{one.message.id}",
            key_words(one.message),
            one.state,
            count(one.attempts),
            time_words(one.due, "-"),
            duration_words(one.age),
            one.lane,
            _last_line(one.error),
        ]
        for one in found
    ]
    columns = ["message", "key", "state", "attempts", "due (UTC)", "age", "lane", "error"]
    return Table(columns, rows, frozenset({"attempts", "age"}))


def _last_line(error: str) -> str:
    lines = error.strip().splitlines()
    line = lines[-1] if lines else "-"
    return line if len(line) <= _SHORT else line[: _SHORT - 1] + "…"


def _record(one: PendingMessage) -> dict[str, Any]:
    return {
        "partition": one.message.partition,
        "message_id": one.message.id,
        "state": one.state,
        "lane": one.lane,
        "attempts": one.attempts,
        "error": one.error,
        "first": one.first,
        "due": one.due,
        "age": one.age,
        **message_record(one.message),
    }
