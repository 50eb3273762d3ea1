"""`dead list`, `show`, `retry`, `discard`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any

import click

from bus.cli.kinds import LETTER, PARTITION, REASON, SINCE, Branch, of_group
from bus.cli.session import Session, pass_session
from bus.format.display import cut
from bus.operating import deadletters, filters
from bus.operating.deadletters import DeadLetter, Origin, Selection
from bus.operating.fates import Tally
from bus.terminal.output import NOT_APPLIED, Table, answer, bar, count, many, remark, time_words
from bus.terminal.values import headers_words, key_words, message_record, value_words

#: Characters of a reason in a table; `show` has all of it.
_SHORT = 80

dead = Branch("dead", help="Look at dead letters, and retry or discard them.")

#: Retries or discards dead letters of a group (topic, group, which, what is told how many are dealt with).
DealWithLetters = Callable[[str, str, Selection, Callable[[int], None]], Tally]


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--since", type=SINCE, help="Died then or later: 90s, 12h, 7d, or an ISO time."),
        click.option("--reason", type=REASON, help="Text that stands in the reason, in upper or lower case."),
        click.option("--key", help="The key of the message."),
        click.option("--partition", type=PARTITION),
    ):
        command = option(command)
    return command


def _which(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what says which letters are meant, and --apply."""
    for option in (
        click.option("--apply", is_flag=True, help="Do it; without this they are counted."),
        click.option("--all", "everything", is_flag=True, help="All dead letters of the group."),
        _filters,
        click.argument("letters", type=LETTER, nargs=-1, metavar="[ID]..."),
        of_group,
    ):
        command = option(command)
    return command


@dead.command("list")
@of_group
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
@of_group
@click.argument("letter", type=LETTER, metavar="ID")
@pass_session
def show_letter(session: Session, topic: str, group: str, letter: Origin) -> None:
    """One dead letter: its message, the error, and when. Its ID is as `dead list` writes it: 3/1700-0."""
    dead_letter = deadletters.get(session.bus, topic, group, letter)
    if dead_letter is None:
        raise click.ClickException(f"Group {group} of topic {topic} has no dead letter {letter} (any more).")
    answer(session.json, _record(dead_letter), _facts(dead_letter), *_texts(dead_letter))


@dead.command("retry")
@_which
@pass_session
def retry_letters(session: Session, /, topic: str, group: str, apply: bool, **which: Any) -> int:
    """Give dead letters back to their group, and to no other; their attempts begin anew."""
    return _deal(session, topic, group, _selection(**which), apply, "Retry")


@dead.command("discard")
@_which
@pass_session
def discard_letters(session: Session, /, topic: str, group: str, apply: bool, **which: Any) -> int:
    """Remove dead letters for good. The audit keeps their ids and reasons, not their values."""
    return _deal(session, topic, group, _selection(**which), apply, "Discard")


def _selection(letters: tuple[Origin, ...], everything: bool, **chosen: Any) -> Selection:
    """Return which letters are meant. Raises UsageError if nothing is said: that never means all."""
    filtered = any(value is not None for value in chosen.values())
    if not filters.is_said(letters, filtered, everything):
        raise click.UsageError("Say which: IDs, or --partition, --key, --reason or --since, or --all.")
    return Selection(places=letters or None, **chosen)


def _deal(session: Session, topic: str, group: str, selection: Selection, apply: bool, name: str) -> int:
    """Count the letters, and with `apply` retry or discard them; return the exit code."""
    selection = deadletters.bounded(session.bus, selection)
    planned = deadletters.count_matching(session.bus, topic, group, selection)
    plan = f"{name} {many(planned, 'dead letter')} of group {group} of topic {topic}."
    if not apply:
        session.check_writable(f"{name.lower()} dead letters")
        answer(session.json, {"planned": planned, "applied": False}, plan, NOT_APPLIED)
        return 0
    operator = session.operator
    deal_with: DealWithLetters = operator.retry_dead if name == "Retry" else operator.discard_dead
    with bar(planned, name.lower()) as tell:
        tally = deal_with(topic, group, selection, tell)
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


def _table(letters: list[DeadLetter]) -> Table:
    rows = [
        [
            str(letter.place),
            letter.message.id,
            key_words(letter.message),
            count(letter.attempts),
            time_words(letter.last),
            cut(letter.reason, _SHORT),
        ]
        for letter in letters
    ]
    return Table(["id", "message", "key", "attempts", "died (UTC)", "reason"], rows, frozenset({"attempts"}))


def _facts(letter: DeadLetter) -> Table:
    message = letter.message
    rows = [
        ["id", str(letter.place)],
        ["message", f"{message.topic}/{message.partition}/{message.id}"],
        ["published (UTC)", time_words(message.timestamp)],
        ["failed first (UTC)", time_words(letter.first)],
        ["died (UTC)", time_words(letter.last)],
        ["attempts", count(letter.attempts)],
        ["reason", letter.reason],
        ["key", key_words(message)],
        ["headers", headers_words(message)],
        ["value", value_words(message)],
    ]
    return Table(["", ""], rows)


def _texts(letter: DeadLetter) -> list[str]:
    """Return the lines of the error. A control character in one is escaped, the line ends are not."""
    return ["", *letter.error.splitlines()]


def _record(letter: DeadLetter) -> dict[str, Any]:
    message = letter.message
    return {
        "id": str(letter.place),
        "topic": message.topic,
        "partition": message.partition,
        "message_id": message.id,
        "published": message.timestamp,
        "first": letter.first,
        "last": letter.last,
        "attempts": letter.attempts,
        "reason": letter.reason,
        "error": letter.error,
        **message_record(message),
    }


def _dropped_words(dropped: int | None) -> str:
    if dropped is None:
        return "How many older ones beyond DEAD_LIMIT had to go cannot be read: see `bus doctor`."
    if not dropped:
        return ""
    return f"{many(dropped, 'older dead letter')} beyond DEAD_LIMIT had to go."
