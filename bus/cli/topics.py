"""`topic create`, `list`, `describe`, `change`, `sync`, `delete`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import click

from bus import observe
from bus.cli.groups import group_table, tell_unreadable
from bus.cli.kinds import PARTITIONS, RETENTION, TOPIC, Branch
from bus.cli.session import Session, pass_session
from bus.observe import GroupSnapshot, Lag, PartitionSnapshot, Survey, TopicSnapshot
from bus.terminal.output import (
    NOT_APPLIED,
    UNKNOWN,
    Table,
    ago_words,
    answer,
    count,
    duration_words,
    lag_words,
    many,
    remark,
    time_words,
)

FOR_EVER = "for ever"

topic = Branch("topic", help="Create, look at, change and delete topics.")


@topic.command("create")
@click.argument("name", type=TOPIC)
@click.option("--partitions", type=PARTITIONS, default=1, show_default=True)
@click.option("--retention", type=RETENTION, help="Such as 7d or 12h; default: messages are kept for ever.")
@click.option("--notes", default="", help="For people: what is in it, who owns it.")
@pass_session
def create_topic(
    session: Session, name: str, partitions: int, retention: timedelta | None, notes: str
) -> None:
    """Make a topic."""
    session.operator.create_topic(name, partitions, retention, notes)
    data = {"topic": name, "partitions": partitions, "retention": retention}
    answer(session.json, data, f"Topic {name} with {many(partitions, 'partition')} is ready.")
    remark(session.operator.remark)


@topic.command("list")
@pass_session
def list_topics(session: Session) -> None:
    """All topics, with their messages and the lag of their groups."""
    survey = observe.take_survey(session.bus)
    answer(session.json, survey.topics, topic_table(survey.topics))
    _tell_drift(session, survey)
    tell_unreadable(survey)


@topic.command("describe")
@click.argument("name", type=TOPIC)
@pass_session
def describe_topic(session: Session, name: str) -> None:
    """One topic with its partitions and groups."""
    survey = observe.take_survey(session.bus, name)
    (snapshot,) = survey.topics
    partitions = survey.partitions(name)
    facts = session.operator.facts(name)
    data = {"topic": snapshot, "partitions": partitions, **facts}
    words = [f"{title}: {text}" for title, text in facts.items() if text]
    if snapshot.delayed != 0:
        due = f"the next is due {time_words(snapshot.next_due)} UTC"
        words.append(f"delayed: {count(snapshot.delayed)}; {due}")
    answer(
        session.json,
        data,
        topic_table([snapshot]),
        *words,
        "",
        partition_table(partitions),
        "",
        group_table(snapshot.groups) if snapshot.groups else "No group reads this topic yet.",
    )
    _tell_drift(session, survey, name)


@topic.command("change")
@click.argument("name", type=TOPIC)
@click.option("--partitions", type=PARTITIONS, help="More than now; keys move to other partitions.")
@click.option("--retention", type=RETENTION, help="Such as 7d, or 'forever'.")
@click.option("--notes")
@click.option("--apply", is_flag=True, help="Do it; without this the plan is shown.")
@click.pass_context
def change_topic(context: click.Context, /, name: str, apply: bool, **options: Any) -> None:
    """Change what is given of a topic."""
    session: Session = context.obj
    given = click.core.ParameterSource.COMMANDLINE
    changes = {key: value for key, value in options.items() if context.get_parameter_source(key) == given}
    if not changes:
        raise click.UsageError("Nothing to change: give --partitions, --retention or --notes.")
    before = observe.topic(session.bus, name)
    if apply:
        session.operator.change_topic(name, changes)
    else:
        session.operator.check_change(name, changes)
    data = {"topic": name, "changes": changes, "applied": apply}
    answer(session.json, data, *_change_plan(before, changes), _outcome(apply, f"Topic {name} is changed."))
    if apply:
        remark(session.operator.remark)


@topic.command("sync")
@pass_session
def sync_topics(session: Session) -> int:
    """Store the topics that code declares, and write all topics to Redis."""
    report = session.operator.sync()
    answer(
        session.json,
        report,
        f"Stored from code: {_names(report.created)}. Changed by code: {_names(report.changed)}. "
        f"Written to Redis: {_names(report.projected)}.",
    )
    for problem in report.problems:
        remark(problem)
    return 1 if report.problems else 0


@topic.command("delete")
@click.argument("name", type=TOPIC)
@click.option("--apply", is_flag=True, help="Do it; without this the plan is shown.")
@click.option("--confirm", metavar="NAME", help="The name once more; asked for on a terminal.")
@pass_session
def delete_topic(session: Session, name: str, apply: bool, confirm: str | None) -> None:
    """Delete a topic with all its messages and groups."""
    before = observe.topic(session.bus, name)
    session.check_writable("delete topic")
    session.operator.check_deletable(name, name)
    plan = (
        f"Delete topic {name}: {many(before.partitions, 'partition')}, {count(before.messages)} messages, "
        f"{count(before.delayed)} delayed messages, "
        f"groups: {_names([group.name for group in before.groups])}."
    )
    if apply:
        session.operator.delete_topic(name, confirm if confirm is not None else _ask(plan))
    answer(
        session.json, {"topic": before, "applied": apply}, plan, _outcome(apply, f"Topic {name} is deleted.")
    )


def topic_table(topics: Sequence[TopicSnapshot]) -> Table:
    rows = [
        [
            snapshot.name,
            count(snapshot.partitions),
            count(snapshot.messages),
            duration_words(snapshot.retention, FOR_EVER),
            ago_words(snapshot.last_published, "never" if snapshot.published == 0 else UNKNOWN),
            count(len(snapshot.groups)),
            lag_words(worst_lag(snapshot.groups)) if snapshot.groups else "-",
        ]
        for snapshot in topics
    ]
    columns = [
        "topic",
        "partitions",
        "messages",
        "retention",
        "last",
        "groups",
        "worst lag",
    ]
    numbers = {"partitions", "messages", "groups", "worst lag"}
    return Table(columns, rows, frozenset(numbers))


def partition_table(partitions: list[PartitionSnapshot]) -> Table:
    rows = [
        [
            count(partition.partition),
            "missing in Redis" if partition.missing else count(partition.length),
            partition.first_id or "-",
            partition.last_id or "-",
            count(partition.first_offset),
            count(partition.next_offset),
        ]
        for partition in partitions
    ]
    columns = ["partition", "messages", "first id", "last id", "first offset", "next offset"]
    return Table(columns, rows, frozenset(columns) - {"first id", "last id"})


def worst_lag(groups: tuple[GroupSnapshot, ...]) -> Lag | None:
    """Return the greatest lag; None if one of them is unknown."""
    lags = [group.lag for group in groups if group.lag is not None]
    if len(lags) < len(groups) or not lags:
        return None
    return max(lags, key=lambda lag: (lag.count, not lag.exact))


def _change_plan(before: TopicSnapshot, changes: dict[str, Any]) -> list[str]:
    plan = []
    if "partitions" in changes:
        plan.append(
            f"Partitions: {before.partitions} → {changes['partitions']}. Keys move to other partitions, so "
            "messages of one key published before and after are not in order with each other."
        )
    if "retention" in changes:
        after = duration_words(changes["retention"], FOR_EVER)
        plan.append(f"Retention: {duration_words(before.retention, FOR_EVER)} → {after}.")
    if "notes" in changes:
        plan.append(f"Notes: {changes['notes']}")
    return plan


def _ask(plan: str) -> str:
    if not sys.stdin.isatty():
        raise click.UsageError("Deleting a topic needs --confirm NAME where nobody can be asked.")
    click.echo(plan, err=True)
    name: str = click.prompt("Name of the topic to delete", err=True)
    return name


def _outcome(applied: bool, done: str) -> str:
    return done if applied else NOT_APPLIED


def _tell_drift(session: Session, survey: Survey, name: str | None = None) -> None:
    for difference in session.operator.drift(survey.declared):
        if name in (None, difference.topic):
            mend = " Run `bus topic sync`." if difference.mended_by_sync else ""
            remark(f"Drift of topic {difference.topic}: {difference.text}.{mend}")


def _names(names: list[str]) -> str:
    return ", ".join(names) or "none"
