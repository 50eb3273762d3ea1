"""`workers` and `doctor`."""

from __future__ import annotations

import click

from bus import observe
from bus.cli.kinds import Leaf
from bus.cli.session import Session, pass_session
from bus.observe import WorkerSnapshot
from bus.terminal.output import Table, answer, count, remark, time_words


@click.command("workers", cls=Leaf)
@pass_session
def workers(session: Session) -> None:
    """The workers that serve groups."""
    snapshots = observe.workers(session.bus)
    answer(session.json, snapshots, worker_table(snapshots))


@click.command("doctor", cls=Leaf)
@pass_session
def doctor(session: Session) -> int:
    """Check the server and the bus; exit code 1 if something is wrong."""
    from bus.doctor import examine

    findings = examine(session.bus)
    rows = [[finding.level, finding.check, finding.text] for finding in findings]
    answer(session.json, findings, Table(["", "check", "finding"], rows))
    for finding in findings:
        if finding.level != "ok" and not session.json:
            remark(f"{finding.check}: {finding.hint}" if finding.hint else "")
    return 1 if any(finding.level == "error" for finding in findings) else 0


def worker_table(workers: list[WorkerSnapshot]) -> Table:
    rows = [
        [
            worker.incarnation,
            worker.host,
            str(worker.pid),
            time_words(worker.started),
            count(worker.processes),
            count(worker.lanes),
            count(worker.beat),
            "all" if worker.groups is None else ", ".join(worker.groups),
        ]
        for worker in workers
    ]
    columns = ["worker", "host", "pid", "started (UTC)", "processes", "lanes", "beats", "groups"]
    return Table(columns, rows, frozenset({"pid", "processes", "lanes", "beats"}))
