"""`publish` and `tail`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, BinaryIO

import click
import orjson

from bus import observe
from bus.cli.kinds import AT, DURATION, HEADER, TOPIC, Leaf
from bus.cli.session import Session, pass_session
from bus.terminal.feed import LONGEST, Feed, publish_file
from bus.terminal.output import answer, dump, many, printable, time_words
from bus.terminal.sources import Format, Lines
from bus.terminal.values import key_words, message_record, value_words
from bus.values import Message, Receipt


@click.command("publish", cls=Leaf)
@click.argument("topic", type=TOPIC)
@click.argument("value", required=False)
@click.option("--key", help="Messages of one key keep their order.")
@click.option("--header", "headers", type=HEADER, multiple=True, help="May be given more than once.")
@click.option("--delay", type=DURATION, help="Stored when so much time has passed: 30s, 12h, 7d.")
@click.option("--at", type=AT, help="Stored then: an ISO time with its zone.")
@click.option("--message-id", help="Stored once within DEDUPE_WINDOW, however often it is published.")
@click.option("--file", type=click.File("rb"), help="Publish each line of a JSONL or CSV file; - is stdin.")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), help="Default: by the file's name.")
@click.option("--key-field", help="With --file: the field of each value that is its key.")
@pass_session
def publish(
    session: Session,
    topic: str,
    value: str | None,
    key: str | None,
    headers: tuple[tuple[str, str], ...],
    delay: timedelta | None,
    at: datetime | None,
    message_id: str | None,
    file: BinaryIO | None,
    form: Format | None,
    key_field: str | None,
) -> None:
    """Publish one VALUE (JSON, or else plain text), or every line of a file."""
    session.check_writable("publish")
    if (value is None) == (file is None):
        raise click.UsageError("Give either a VALUE or --file.")
    if file is None and (key_field is not None or form is not None):
        raise click.UsageError("--key-field and --format belong to --file.")
    if key is not None and key_field is not None:
        raise click.UsageError("Give either --key or --key-field.")
    if file is not None and (delay, at, message_id) != (None, None, None):
        raise click.UsageError("--delay, --at and --message-id are for one VALUE, not for --file.")
    if delay is not None and at is not None:
        raise click.UsageError("Give either --delay or --at.")
    if file is not None:
        form = form or ("csv" if file.name.lower().endswith(".csv") else "jsonl")
        lines = Lines(file, LONGEST * session.bus.settings.max_message_bytes)
        feed = Feed(session.bus, topic, lines, form, key, key_field, dict(headers))
        published = publish_file(session.bus, topic, lines, feed, file.name)
        answer(
            session.json, {"topic": topic, "published": published}, f"Published {many(published, 'message')}."
        )
        return
    receipt = session.bus.publish(
        topic,
        _value(value or ""),
        key=key,
        headers=dict(headers) or None,
        message_id=message_id,
        delay=delay,
        at=at,
    )
    answer(session.json, receipt, _receipt_words(receipt))


def _receipt_words(receipt: Receipt) -> str:
    where = f"partition {receipt.partition} of {receipt.topic}"
    if receipt.id.startswith("d"):
        before = "was published before, and " if receipt.duplicate else ""
        return f"Message {receipt.id} {before}waits in {where} until it is due."
    verb = "was published before" if receipt.duplicate else "is published"
    return f"Message {receipt.id} {verb} to {where}."


@click.command("tail", cls=Leaf)
@click.argument("topic", type=TOPIC)
@click.option("-n", "number", type=click.IntRange(0, 100_000), default=10, show_default=True)
@click.option("--follow", "-f", is_flag=True, help="Go on with new messages until Ctrl-C.")
@click.option("--partition", type=click.IntRange(0))
@pass_session
def tail(session: Session, topic: str, number: int, follow: bool, partition: int | None) -> None:
    """The newest messages of a topic, oldest of them first. Nothing is marked as read."""
    spec = session.bus.registry.spec(topic)
    if partition is not None and partition >= spec.partitions:
        raise click.UsageError(f"Topic {topic} has the partitions 0 to {spec.partitions - 1}.")
    if not follow:
        for message in reversed(observe.latest(session.bus, topic, number, partition, spec)):
            _show(session.json, message)
        return
    try:
        for message in _following(session, topic, number, partition):
            _show(session.json, message)
    except KeyboardInterrupt:
        return  # the way to end it


def _following(session: Session, topic: str, number: int, partition: int | None) -> Iterator[Message]:
    """Yield the newest messages, then all that come; none is left out and none comes twice."""
    shown: list[Message] = []

    def look_back() -> bool:
        # Asked for the first time when the places to go on from are known, so what is stored
        # meanwhile comes twice, and not never; the second copy is left out below.
        if not shown:
            shown.extend(reversed(observe.latest(session.bus, topic, number, partition)))
            for message in shown:
                _show(session.json, message)
            before.update((message.partition, message.id) for message in shown)
        return False

    before: set[tuple[int, str]] = set()
    for message in observe.tail(session.bus, topic, stop=look_back):
        if partition in (None, message.partition) and (message.partition, message.id) not in before:
            yield message


def _show(as_json: bool, message: Message) -> None:
    if as_json:
        click.echo(dump(_record(message)))
        return
    place = f"{time_words(message.timestamp)}  {message.partition}  {message.id}"
    click.echo(printable(f"{place}  {key_words(message)}  {value_words(message)}"))


def _record(message: Message) -> dict[str, Any]:
    place = {"topic": message.topic, "partition": message.partition, "id": message.id}
    return {**place, **message_record(message)}


def _value(text: str) -> Any:
    """Parse JSON; what is none is plain text, unless it begins like JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if text.lstrip()[:1] in ("{", "[", '"'):
            raise click.UsageError(f"VALUE begins like JSON and is none: {error}.") from error
        return text
