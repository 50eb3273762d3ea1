"""`group reset` and `group positions`: move a group to another place, and write down where it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import click
import orjson

from bus import observe
from bus.cli.kinds import DURATION, GROUP, START, TOPIC, Leaf
from bus.cli.session import Session, pass_session
from bus.operating import positions, targets
from bus.operating.positions import Move, Plan, PlanChanged
from bus.operating.targets import Target
from bus.terminal.output import NOT_APPLIED, UNKNOWN, Table, answer, count, many, time_words

_HELP = """Move a group to another position. Without --apply the plan is shown.

Say where to in one way: --to, --offset, --ago, --shift, --like or --import. Works while workers run: what was
pending is forgotten, and the group goes on from there. Dead letters stay.

\b
  bus group reset orders stock --to earliest
  bus group reset orders stock --to 2030-01-31T12:00+01:00 --apply
  bus group reset orders stock --shift -150 --partition 3 --apply
"""


@click.command("reset", cls=Leaf, help=_HELP)
@click.argument("topic", type=TOPIC)
@click.argument("group", type=GROUP)
@click.option("--to", type=START, help="earliest, latest, an id after which it goes on, or an ISO time.")
@click.option("--offset", type=click.IntRange(min=0), help="The offset of the next message.")
@click.option("--ago", type=DURATION, help="The first message of the last so long, such as 2h.")
@click.option("--shift", type=int, help="So many messages on, or back: -150.")
@click.option("--like", type=GROUP, help="Where this other group of the topic is.")
@click.option("--import", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="What `group positions --export` has written.")  # fmt: skip
@click.option("--partition", "partitions", type=click.IntRange(min=0), multiple=True,
              help="Only this partition; may be repeated.")  # fmt: skip
@click.option("--apply", is_flag=True, help="Do it; without this the plan is shown.")
@click.option("--basis", help="With --apply: only if the plan still has this basis, as it was shown.")
@pass_session
def reset(
    session: Session,
    topic: str,
    group: str,
    to: str | None,
    offset: int | None,
    ago: timedelta | None,
    shift: int | None,
    like: str | None,
    file: Path | None,
    partitions: tuple[int, ...],
    apply: bool,
    basis: str | None,
) -> None:
    ways: Mapping[str, tuple[Any, Callable[[Any], Target]]] = {
        "--to": (to, targets.at),
        "--offset": (offset, targets.offset),
        "--ago": (ago, targets.ago),
        "--shift": (shift, targets.shift),
        "--like": (like, targets.like),
        "--import": (file, lambda path: targets.exactly(read_positions(path))),
    }
    given = [(value, make) for value, make in ways.values() if value is not None]
    if len(given) != 1:
        raise click.UsageError(f"Say where to in one way: one of {', '.join(ways)}.")
    [(value, make)] = given
    target, chosen = make(value), list(partitions) or None
    plan = positions.plan(session.bus, topic, group, target, partitions=chosen)
    if not apply:
        session.check_writable("reset group")
        _show(session, plan, applied=False)
        return
    try:
        plan = session.operator.reset_group(plan, basis)
    except PlanChanged:
        now = positions.plan(session.bus, topic, group, target, partitions=chosen)
        _show(session, now, applied=False)
        raise
    _show(session, plan, applied=True)


@click.command("positions", cls=Leaf)
@click.argument("topic", type=TOPIC)
@click.argument("group", type=GROUP)
@click.option("--export", type=click.Choice(["csv", "json"]), help="Write them for `group reset --import`.")
@pass_session
def positions_command(
    session: Session, topic: str, group: str, export: Literal["csv", "json"] | None
) -> None:
    """Where a group is in each partition; with --export as a file that `group reset --import` reads."""
    _, partitions = observe.group(session.bus, topic, group)
    rows = [
        {"partition": partition.partition, "position": partition.position, "offset": partition.offset}
        for partition in partitions
    ]
    if export == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, ["partition", "position", "offset"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        click.echo(text.getvalue(), nl=False)
        return
    cells = [
        [count(partition.partition), partition.position or UNKNOWN, count(partition.offset)]
        for partition in partitions
    ]
    table = Table(["partition", "position", "offset"], cells, frozenset({"partition", "offset"}))
    answer(session.json or export == "json", rows, table)


def read_positions(path: Path) -> dict[int, str]:
    """Return the positions in a CSV or JSON file: partition → id, or offset where there is no id.

    Raises click.BadParameter with what is wrong, and where.
    """
    text = path.read_text("utf-8-sig")
    try:
        is_json = text.lstrip().startswith("[")
        rows = orjson.loads(text) if is_json else list(csv.DictReader(io.StringIO(text)))
    except (orjson.JSONDecodeError, csv.Error) as error:
        raise click.BadParameter(f"{path} is neither CSV nor JSON: {error}") from error
    found: dict[int, str] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}, entry {number}"
        position = row.get("position") or row.get("offset") if isinstance(row, dict) else None
        partition = str(row.get("partition", "")) if isinstance(row, dict) else ""
        if position is None or not (partition.isascii() and partition.isdigit()):
            raise click.BadParameter(f"{where} has no partition, and a position or an offset: {row!r}")
        if int(partition) in found:
            raise click.BadParameter(f"{where} is the second one of partition {partition}.")
        found[int(partition)] = str(position)
    if not found:
        raise click.BadParameter(f"{path} has no positions.")
    return found


def _show(session: Session, plan: Plan, *, applied: bool) -> None:
    data = {"topic": plan.topic, "group": plan.group, "target": plan.target.text, "basis": plan.basis,
            "partitions": [_data(move) for move in plan.moves], "applied": applied}  # fmt: skip
    replayed = sum(move.replayed for move in plan.moves)
    skipped = sum(move.skipped for move in plan.moves)
    title = (
        f"Group {plan.group} of topic {plan.topic} to {plan.target.text}: {many(replayed, 'message')} again, "
        f"{many(skipped, 'message')} skipped. Pending messages are forgotten, but those after it come again."
    )
    warnings = [f"Partition {move.partition}: {warning}." for move in plan.moves for warning in move.warnings]
    end = "It is reset." if applied else f"{NOT_APPLIED} With --basis {plan.basis} it is done only as shown."
    answer(session.json, data, title, _table(plan.moves), *warnings, end)


def _data(move: Move) -> dict[str, Any]:
    names = ("replayed", "skipped", "pending", "abandoned", "retrying", "held", "dead", "warnings")
    places = {
        name: {"id": place.id, "offset": place.offset, "time": place.time}
        for name, place in (("before", move.before), ("after", move.after))
    }
    return {"partition": move.partition, **places, **{name: getattr(move, name) for name in names}}


def _table(moves: tuple[Move, ...]) -> Table:
    numbers = ["partition", "offset", "new offset", "again", "skipped", "pending", "abandoned", "dead"]
    rows = [
        [
            count(move.partition), move.before.id, count(move.before.offset),
            move.after.id, count(move.after.offset), time_words(move.after.time, "-"),
            count(move.replayed), count(move.skipped), count(move.pending), count(move.abandoned),
            count(move.dead),
        ]
        for move in moves
    ]  # fmt: skip
    columns = ["partition", "position", "offset", "new position", "new offset", "time (UTC)", *numbers[3:]]
    return Table(columns, rows, frozenset(numbers))
