"""`dead list`, `show`, `retry`, `discard`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any

import click

from bus.cli.kinds import GROUP, LETTER, PARTITION, REASON, SINCE, TOPIC, Branch
from bus.cli.session import Session, pass_session
from bus.operating import deadletters, filters
from bus.operating.deadletters import DeadLetter, Origin, Selection
from bus.operating.fates import Tally
from bus.safety.unreadable import escaped
from bus.terminal.output import Table, answer, bar, count, many, remark, time_words
from bus.terminal.values import key_words, message_record, value_words

#: Characters of a reason in a table; `show` has all of it.
_SHORT = 80

dead = Branch("dead", help="Look at dead letters, and retry or discard them.")

Verb = Callable[[str, str, Selection, Callable[[int], None]], Tally]


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--since", type=SINCE, help="Died then or later: 90s, 12h, 7d, or an ISO time."),
        click.option("--reason", type=REASON, help="Text that stands in the reason, in upper or lower case."),
        click.option("--key", help="The key of the message."),
        click.option("--partition", type=PARTITION),
    ):
        command = option(command)
    return command


@dead.command("list")
@click.argument("topic", type=TOPIC)
@click.argument("group", type=GROUP)
@_filters
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@pass_session
def list_letters(
    session: Session, topic: str, group: str, partition: int | None, key: str | None, reason: str | None,
    since: datetime | None, limit: int,
) -> None:  # fmt: skip
    """The dead letters of a group, newest first."""
    selection = Selection(partition=partition, key=key, reason=reason, since=since)
    every = deadletters.partitions(session.bus, topic, group)
    newest = deadletters.find(session.bus, topic, group, selection, newest_first=True, all_keys=every)
    letters = list(islice(newest, limit))
    total = deadletters.count(session.bus, topic, group, every)
    data = {"letters": [_record(letter) for letter in letters], "kept": total.kept, "dropped": total.dropped}
    answer(session.json, data, _table(letters))
    if not session.json:
        remark(f"{count(len(letters))} of {many(total.kept, 'dead letter')}.")
        remark(_dropped_words(total.dropped))


@dead.command("show")
@click.argument("topic", type=TOPIC)
@click.argument("group", type=GROUP)
@click.argument("letter", type=LETTER, metavar="ID")
@pass_session
def show_letter(session: Session, topic: str, group: str, letter: Origin) -> None:
    """One dead letter: its message, the error, and when. Its ID is as `dead list` writes it: 3/1700-0."""
    found = deadletters.get(session.bus, topic, group, letter)
    if found is None:
        raise click.ClickException(f"Group {group} of topic {topic} has no dead letter {letter} (any more).")
    answer(session.json, _record(found), _facts(found), *_texts(found))


@dead.command("retry")
@click.argument("topic", type=TOPIC)
@click.argument("group", type=GROUP)
@click.argument("letters", type=LETTER, nargs=-1, metavar="[ID]...")
@_filters
@click.option("--all", "everything", is_flag=True, help="All dead letters of the group.")
@click.option("--apply", is_flag=True, help="Do it; without this they are counted.")
@pass_session
def retry_letters(session: Session, /, topic: str, group: str, apply: bool, **which: Any) -> int:
    """Give dead letters back to their group, and to no other; their attempts begin anew."""
    return _deal(session, topic, group, _selection(**which), apply, "Retry")


@dead.command("discard")
@click.argument("topic", type=TOPIC)
@click.argument("group", type=GROUP)
@click.argument("letters", type=LETTER, nargs=-1, metavar="[ID]...")
@_filters
@click.option("--all", "everything", is_flag=True, help="All dead letters of the group.")
@click.option("--apply", is_flag=True, help="Do it; without this they are counted.")
@pass_session
def discard_letters(session: Session, /, topic: str, group: str, apply: bool, **which: Any) -> int:
    """Remove dead letters for good. The audit keeps their ids and reasons, not their values."""
    return _deal(session, topic, group, _selection(**which), apply, "Discard")


def _selection(letters: tuple[Origin, ...], everything: bool, **chosen: Any) -> Selection:
    """What is meant. Nothing said means nothing, never all."""
    filtered = any(value is not None for value in chosen.values())
    if not filters.is_said(letters, filtered, everything):
        raise click.UsageError("Say which: IDs, or --partition, --key, --reason or --since, or --all.")
    return Selection(places=letters or None, **chosen)


def _deal(session: Session, topic: str, group: str, selection: Selection, apply: bool, name: str) -> int:
    """Count, and with --apply do it; the exit code."""
    selection = deadletters.bounded(session.bus, selection)
    planned = deadletters.count_matching(session.bus, topic, group, selection)
    plan = f"{name} {many(planned, 'dead letter')} of group {group} of topic {topic}."
    if not apply:
        session.check_writable(f"{name.lower()} dead letters")
        words = "Nothing is done yet: add --apply to do it."
        answer(session.json, {"planned": planned, "applied": False}, plan, words)
        return 0
    verb: Verb = session.operator.retry_dead if name == "Retry" else session.operator.discard_dead
    with bar(planned, name.lower()) as tell:
        tally = verb(topic, group, selection, tell)
    data = {
        "planned": planned, "applied": True, "retried": tally.retried, "copied": tally.copied,
        "discarded": tally.discarded, "gone": tally.gone, "kept": tally.kept,
    }  # fmt: skip
    answer(session.json, data, plan, *_outcome(tally, name))
    return 1 if tally.kept else 0


def _outcome(tally: Tally, name: str) -> Iterator[str]:
    if name == "Retry":
        yield f"Given back to the group: {count(tally.retried)}."
        if tally.copied:
            yield f"Added to the topic anew, since the originals were trimmed: {count(tally.copied)}."
    else:
        yield f"Discarded: {count(tally.discarded)}."
    if tally.gone:
        yield f"Gone meanwhile, retried or discarded by somebody else or dropped: {count(tally.gone)}."
    if tally.kept:
        yield (
            "Still dead letters, because Redis lacks the group or the stream, or no copy was kept: "
            f"{count(tally.kept)}."
        )


# ---------------------------------------------------------------------- words


def _table(found: list[DeadLetter]) -> Table:
    rows = [
        [
            str(one.place),
            one.message.id,
            key_words(one.message),
            count(one.attempts),
            time_words(one.last),
            one.reason if len(one.reason) <= _SHORT else one.reason[: _SHORT - 1] + "…",
        ]
        for one in found
    ]
    return Table(["id", "message", "key", "attempts", "died (UTC)", "reason"], rows, frozenset({"attempts"}))


def _facts(found: DeadLetter) -> Table:
    message = found.message
    rows = [
        ["id", str(found.place)],
        ["message", f"{message.topic}/{message.partition}/{message.id}"],
        ["published (UTC)", time_words(message.timestamp)],
        ["failed first (UTC)", time_words(found.first)],
        ["died (UTC)", time_words(found.last)],
        ["attempts", count(found.attempts)],
        ["reason", found.reason],
        ["key", key_words(message)],
        ["headers", escaped(message.raw.get(b"h", b"-"))],
        ["value", value_words(message)],
    ]
    return Table(["", ""], rows)


def _texts(found: DeadLetter) -> list[str]:
    """The error, a line each: a control character in it is escaped, its line ends are not."""
    return ["", *found.error.splitlines()]


def _record(found: DeadLetter) -> dict[str, Any]:
    message = found.message
    return {
        "id": str(found.place),
        "topic": message.topic,
        "partition": message.partition,
        "message_id": message.id,
        "published": message.timestamp,
        "first": found.first,
        "last": found.last,
        "attempts": found.attempts,
        "reason": found.reason,
        "error": found.error,
        **message_record(message),
    }


def _dropped_words(dropped: int | None) -> str:
    if dropped is None:
        return "How many older ones beyond DEAD_LIMIT had to go cannot be read: see `bus doctor`."
    if not dropped:
        return ""
    return f"{many(dropped, 'older dead letter')} beyond DEAD_LIMIT had to go."
