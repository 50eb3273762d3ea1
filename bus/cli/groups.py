"""`group create`, `list`, `describe`, `pause`, `resume`, `delete`. See bus.cli.positions for more."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bus import observe
from bus.cli.kinds import START, TOPIC, Branch, of_group
from bus.cli.session import Session, pass_session
from bus.observe import GroupPartitionSnapshot, GroupSnapshot, Survey
from bus.observe.loss import loss_words
from bus.sums import known_total
from bus.terminal.output import (
    NOT_APPLIED,
    UNKNOWN,
    Table,
    answer,
    count,
    duration_words,
    lag_words,
    remark,
)
from bus.values import ORDERINGS, Ordering

group = Branch("group", help="Create, look at, pause and delete consumer groups.")


@group.command("list")
@click.argument("topic", type=TOPIC, required=False)
@pass_session
def list_groups(session: Session, topic: str | None) -> None:
    """The groups of one topic or of all, with their lag."""
    survey = observe.take_survey(session.bus, topic)
    answer(session.json, survey.groups, group_table(survey.groups))
    tell_unreadable(survey)


@group.command("describe")
@of_group
@pass_session
def describe_group(session: Session, topic: str, group: str) -> None:
    """One group: position, lag and owner in each partition."""
    snapshot, shares = observe.group(session.bus, topic, group)
    data = {"group": snapshot, "partitions": shares}
    waits = [snapshot.reordering] if snapshot.reordering else []
    answer(session.json, data, group_table([snapshot]), *waits, "", share_table(shares), *loss_lines(shares))


@group.command("create")
@of_group
@click.option("--start", type=START, default="earliest", show_default=True,
              help="earliest, latest, a message id after which it begins, or an ISO time.")  # fmt: skip
@click.option("--ordering", type=click.Choice(ORDERINGS), default="key", show_default=True)
@pass_session
def create_group(session: Session, topic: str, group: str, start: str, ordering: Ordering) -> None:
    """Make a group on a topic, before its first worker does."""
    session.operator.create_group(topic, group, start, ordering)
    data = {"topic": topic, "group": group, "start": start, "ordering": ordering}
    answer(session.json, data, f"Group {group} of topic {topic} begins at {start}.")


@group.command("pause")
@of_group
@pass_session
def pause_group(session: Session, topic: str, group: str) -> None:
    """Stop giving messages to a group."""
    session.operator.pause_group(topic, group)
    _tell_paused(session, topic, group, True)


@group.command("resume")
@of_group
@pass_session
def resume_group(session: Session, topic: str, group: str) -> None:
    """Give messages to a paused group again."""
    session.operator.resume_group(topic, group)
    _tell_paused(session, topic, group, False)


def _tell_paused(session: Session, topic: str, group: str, paused: bool) -> None:
    data = {"topic": topic, "group": group, "paused": paused}
    answer(session.json, data, f"Group {group} of topic {topic} {'is paused' if paused else 'goes on'}.")


@group.command("delete")
@of_group
@click.option("--apply", is_flag=True, help="Do it; without this the plan is shown.")
@pass_session
def delete_group(session: Session, topic: str, group: str, apply: bool) -> None:
    """Delete a group with its position and dead letters. The messages of the topic stay."""
    snapshot, _ = observe.group(session.bus, topic, group)
    if not apply:
        session.check_writable("delete group")
    else:
        session.operator.delete_group(topic, group)
    answer(
        session.json,
        {"group": snapshot, "applied": apply},
        f"Delete group {group} of topic {topic}: its position (lag {lag_words(snapshot.lag)}), "
        f"{count(snapshot.pending)} pending messages and {count(snapshot.dead)} dead letters. "
        f"{count(snapshot.workers)} workers serve it.",
        f"Group {group} is deleted." if apply else NOT_APPLIED,
    )


def tell_unreadable(survey: Survey) -> None:
    """Tell what is missing in a list, since its record cannot be read."""
    for unreadable in survey.unreadable:
        remark(f"Not shown, since it cannot be read: {unreadable}. See `bus doctor`.")


def group_table(groups: Sequence[GroupSnapshot]) -> Table:
    """Make a table of groups, a row each."""
    rows = [
        [
            group.topic,
            group.name,
            group.ordering,
            "paused" if group.paused else "-",
            lag_words(group.lag),
            duration_words(group.time_lag),
            count(group.pending),
            count(group.retrying),
            count(group.held),
            count(group.dead),
            lost_words(group),
            count(group.workers),
        ]
        for group in groups
    ]
    numbers = ["lag", "time lag", "pending", "retrying", "held", "dead", "lost", "workers"]
    return Table(["topic", "group", "ordering", "paused", *numbers], rows, frozenset(numbers))


def lost_words(of: GroupSnapshot | GroupPartitionSnapshot) -> str:
    """Tell how many messages were removed before they were settled; "up to 5" where only a limit is known."""
    surely = known_total((of.trimmed, of.lost))
    return count(None) if surely is None else loss_words(surely, of.lost_maybe or 0)


def loss_lines(shares: Sequence[GroupPartitionSnapshot]) -> list[str]:
    """Tell where and when somebody removed messages that had not been given yet."""
    return [
        f"Partition {share.partition}: messages were removed before they were given, last {last.told}."
        for share in shares
        if (last := share.lost_last) is not None
    ]


def share_table(shares: Sequence[GroupPartitionSnapshot]) -> Table:
    """Make a table of one group, a row for each partition."""
    rows = [
        [
            count(share.partition),
            "missing in Redis" if share.missing else share.position or UNKNOWN,
            count(share.offset),
            count(share.end),
            lag_words(share.lag),
            count(share.pending),
            count(share.retrying),
            count(share.held),
            count(share.dead),
            lost_words(share),
            share.owner or ("nobody" if share.unheld else "-"),
        ]
        for share in shares
    ]
    columns = [
        "partition",
        "position",
        "offset",
        "end",
        "lag",
        "pending",
        "retrying",
        "held",
        "dead",
        "lost",
        "owner",
    ]
    return Table(columns, rows, frozenset(columns) - {"position", "owner"})
