"""`delayed list`, `cancel`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import click

from bus.cli.kinds import DELAYED, PARTITION, TOPIC, Branch
from bus.cli.session import Session, pass_session
from bus.format.display import cut
from bus.operating import delayed as delays
from bus.operating.delayed import DelayedMessage, DelayedRef
from bus.terminal.output import NOT_APPLIED, Table, answer, bar, count, many, remark, time_words
from bus.terminal.values import key_words, message_record, value_words

#: Characters of a value in a table.
_SHORT = 60

delayed = Branch("delayed", help="Look at messages that wait until they are due, and cancel them.")


@delayed.command("list")
@click.argument("topic", type=TOPIC)
@click.option("--partition", type=PARTITION)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@pass_session
def list_delayed(session: Session, topic: str, partition: int | None, limit: int) -> None:
    """The messages of a topic that wait, those that are due first at the top."""
    chosen = delays.partitions(session.bus, topic, partition)
    messages = list(islice(delays.find(session.bus, topic, partition, chosen), limit))
    total = delays.count(session.bus, topic, partition, chosen)
    data = {"messages": [_record(message) for message in messages], "delayed": total}
    answer(session.json, data, _table(messages))
    if not session.json:
        remark(f"{count(len(messages))} of {many(total, 'delayed message')}.")


@delayed.command("cancel")
@click.argument("topic", type=TOPIC)
@click.argument("refs", type=DELAYED, nargs=-1, metavar="[ID]...")
@click.option("--partition", type=PARTITION)
@click.option("--all", "everything", is_flag=True, help="All delayed messages of the topic.")
@click.option("--apply", is_flag=True, help="Do it; without this they are counted.")
@pass_session
def cancel_delayed(
    session: Session,
    topic: str,
    refs: tuple[DelayedRef, ...],
    partition: int | None,
    everything: bool,
    apply: bool,
) -> None:
    """Remove delayed messages for good, before they are due. IDs are as `delayed list` writes them: 3/d17."""
    if bool(refs) + (partition is not None) + everything != 1:
        raise click.UsageError("Say which: IDs, or --partition, or --all.")
    bus, refs = session.bus, tuple(dict.fromkeys(refs))
    which: Iterable[DelayedRef] = refs or delays.refs(bus, topic, partition)
    planned = delays.present(bus, topic, refs) if refs else delays.count(bus, topic, partition)
    plan = f"Cancel {many(planned, 'delayed message')} of topic {topic}."
    if not apply:
        session.check_writable("cancel delayed")
        data = {"planned": planned, "applied": False}
        answer(session.json, data, plan, NOT_APPLIED)
        return
    with bar(planned, "cancel") as tell:
        tally = session.operator.cancel_delayed(topic, which, tell)
    data = {"planned": planned, "applied": True, "cancelled": tally.cancelled, "gone": tally.gone}
    words = [f"Cancelled: {count(tally.cancelled)}."]
    if tally.gone:
        words.append(f"Not there, since they were moved or cancelled before: {count(tally.gone)}.")
    answer(session.json, data, plan, *words)


def _table(messages: list[DelayedMessage]) -> Table:
    rows = [
        [
            str(delayed.ref),
            time_words(delayed.due),
            key_words(delayed.message),
            delayed.message_id or "-",
            cut(value_words(delayed.message), _SHORT),
        ]
        for delayed in messages
    ]
    return Table(["id", "due (UTC)", "key", "message_id", "value"], rows)


def _record(delayed: DelayedMessage) -> dict[str, Any]:
    return {
        "id": str(delayed.ref),
        "partition": delayed.ref.partition,
        "due": delayed.due,
        "message_id": delayed.message_id,
        **message_record(delayed.message),
    }
