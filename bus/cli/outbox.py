"""`outbox relay`, `status`: messages that wait in the database."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import click

from bus.cli.kinds import Branch
from bus.cli.session import Session, pass_session
from bus.errors import BusError
from bus.safety.complaints import Complaints
from bus.terminal.output import Table, ago_words, answer, count, many, remark

if TYPE_CHECKING:
    from bus.transactions.outbox import Relay, ShardBacklog

#: How often --follow looks for new rows. Seconds.
LOOK_SECONDS = 0.5

outbox = Branch("outbox", help="Messages that were published in a transaction and are not in Redis yet.")


@outbox.command("status")
@click.option("--database", metavar="ALIAS", help="One database; else all that have an outbox.")
@pass_session
def status(session: Session, database: str | None) -> None:
    """How many rows wait, and since when, in each partition."""
    from bus.transactions.outbox import backlogs

    shards = [shard for alias in _aliases(session, database) for shard in backlogs(session.bus, alias)]
    total = sum(shard.rows for shard in shards)
    oldest = min((shard.oldest for shard in shards if shard.oldest), default=None)
    answer(session.json, {"rows": total, "oldest": oldest, "partitions": shards}, _table(shards))
    if not session.json:
        remark(
            f"{many(total, 'message')} in the outbox"
            + (f", the oldest {ago_words(oldest)}." if oldest else ".")
        )


@outbox.command("relay")
@click.option("--database", metavar="ALIAS", help="One database; else all that have an outbox.")
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@pass_session
def relay(session: Session, database: str | None, follow: bool) -> int:
    """Publish what waits. Workers do the same; both at once do no harm."""
    from bus.transactions.outbox import Relay

    session.check_writable("outbox relay")
    logging.getLogger("bus.outbox").addHandler(_Remarks())
    relays = [Relay(session.bus, alias) for alias in _aliases(session, database)]
    if follow:
        _follow(relays)
        return 0
    sent = sum(_send_all(relay) for relay in relays)
    failed = any(relay.failed for relay in relays)
    answer(session.json, {"sent": sent, "failed": failed}, f"{many(sent, 'message')} published.")
    return 1 if failed else 0


def _send_all(relay: Relay) -> int:
    sent = 0
    while more := relay.run():
        sent += more
    return sent


def _follow(relays: list[Relay]) -> None:
    complaints, pause = Complaints(logging.getLogger("bus.outbox")), threading.Event()
    try:
        while True:
            sent = 0
            try:
                sent = sum(relay.run() for relay in relays)
            except BusError as error:
                complaints.say(type(error).__name__, "Not published yet: %s", error)
            if not sent:
                pause.wait(LOOK_SECONDS)
    except KeyboardInterrupt:
        return  # the way to end it


def _aliases(session: Session, database: str | None) -> list[str]:
    aliases = session.operator.outboxes()
    if database is None:
        return aliases
    if database not in aliases:
        raise click.UsageError(
            f"Database {database!r} has no outbox. Those that have: {', '.join(aliases) or 'none'}."
        )
    return [database]


def _table(shards: list[ShardBacklog]) -> Table:
    rows = [
        [shard.database, shard.topic, count(shard.partition), count(shard.rows), ago_words(shard.oldest)]
        for shard in shards
    ]
    return Table(["database", "topic", "partition", "rows", "oldest"], rows, frozenset({"partition", "rows"}))


class _Remarks(logging.Handler):
    """Tells on stderr what the relay logs, also where logging is not set up."""

    def emit(self, record: logging.LogRecord) -> None:
        remark(record.getMessage())
