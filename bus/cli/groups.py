"""`group create`, `list`, `describe`, `pause`, `resume`, `delete`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from bus import observe
from bus.cli.kinds import GROUP, START, TOPIC, Branch
from bus.cli.session import Session, pass_session
from bus.observe import GroupPartitionSnapshot, GroupSnapshot, Survey
from bus.observe.loss import loss_words
from bus.sums import known_total
from bus.terminal.output import Table, answer, count, duration_words, lag_words, remark, time_words
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
@click.argument("topic", type=TOPIC)
@click.argument("group", type=GROUP)
@pass_session
def describe_group(session: Session, topic: str, group: str) -> None:
    """One group: position, lag and owner in each partition."""
    found, partitions = observe.group(session.bus, topic, group)
    data = {"group": found, "partitions": partitions}
    waits = [found.reordering] if found.reordering else []
    places = place_table(partitions)
    answer(session.json, data, group_table([found]), *waits, "", places, *loss_lines(partitions))


@group.command("create")
@click.argument("topic", type=TOPIC)
@click.argument("group", type=GROUP)
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
@click.argument("topic", type=TOPIC)
@click.argument("group", type=GROUP)
@pass_session
def pause_group(session: Session, topic: str, group: str) -> None:
    """Stop giving messages to a group."""
    session.operator.pause_group(topic, group)
    data = {"topic": topic, "group": group, "paused": True}
    answer(session.json, data, f"Group {group} of topic {topic} is paused.")


@group.command("resume")
@click.argument("topic", type=TOPIC)
@click.argument("group", type=GROUP)
@pass_session
def resume_group(session: Session, topic: str, group: str) -> None:
    """Give messages to a paused group again."""
    session.operator.resume_group(topic, group)
    data = {"topic": topic, "group": group, "paused": False}
    answer(session.json, data, f"Group {group} of topic {topic} goes on.")


@group.command("delete")
@click.argument("topic", type=TOPIC)
@click.argument("group", type=GROUP)
@click.option("--apply", is_flag=True, help="Do it; without this the plan is shown.")
@pass_session
def delete_group(session: Session, topic: str, group: str, apply: bool) -> None:
    """Delete a group with its position and dead letters. The messages of the topic stay."""
    found, _ = observe.group(session.bus, topic, group)
    if not apply:
        session.check_writable("delete group")
    else:
        session.operator.delete_group(topic, group)
    answer(
        session.json,
        {"group": found, "applied": apply},
        f"Delete group {group} of topic {topic}: its position (lag {lag_words(found.lag)}), "
        f"{count(found.pending)} pending messages and {count(found.dead)} dead letters. "
        f"{count(found.workers)} workers serve it.",
        f"Group {group} is deleted." if apply else "Nothing is done yet: add --apply to do it.",
    )


def tell_unreadable(survey: Survey) -> None:
    """Tell what is missing in a list, since its record cannot be read."""
    for unreadable in survey.unreadable:
        remark(f"Not shown, since it cannot be read: {unreadable}. See `bus doctor`.")


def group_table(found: Sequence[GroupSnapshot]) -> Table:
    rows = [
        [
            one.topic,
            one.group,
            one.ordering,
            "paused" if one.paused else "-",
            lag_words(one.lag),
            duration_words(one.time_lag),
            count(one.pending),
            count(one.retrying),
            count(one.held),
            count(one.dead),
            lost_words(one),
            count(one.workers),
        ]
        for one in found
    ]
    numbers = ["lag", "time lag", "pending", "retrying", "held", "dead", "lost", "workers"]
    return Table(["topic", "group", "ordering", "paused", *numbers], rows, frozenset(numbers))


def lost_words(one: GroupSnapshot | GroupPartitionSnapshot) -> str:
    """Messages that were removed before they were settled; "up to 5" where only a limit is known."""
    surely = known_total((one.trimmed, one.lost))
    return count(None) if surely is None else loss_words(surely, one.lost_maybe or 0)


def loss_lines(found: Sequence[GroupPartitionSnapshot]) -> list[str]:
    """Where and when somebody removed messages that had not been given yet."""
    return [
        f"Partition {one.partition}: messages were removed before they were given, last {last.words} after "
        f"{last.after} and up to {last.before}, found {time_words(last.found)} UTC."
        for one in found
        if (last := one.lost_last) is not None
    ]


def place_table(found: Sequence[GroupPartitionSnapshot]) -> Table:
    rows = [
        [
            count(one.partition),
            "missing in Redis" if one.missing else one.position or "unknown",
            count(one.offset),
            count(one.end),
            lag_words(one.lag),
            count(one.pending),
            count(one.retrying),
            count(one.held),
            count(one.dead),
            lost_words(one),
            one.owner or ("nobody" if one.unheld else "-"),
        ]
        for one in found
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
