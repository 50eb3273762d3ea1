"""`server start`, `stop`, `status`: the embedded server of this project."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from bus.cli.kinds import Branch
from bus.cli.session import Session, pass_session
from bus.format.display import size_of
from bus.streams import embedded
from bus.terminal.output import answer, duration_words, remark

server = Branch("server", help="Start, stop and look at the server of an embedded:// URL.")


@server.command("start")
@pass_session
def start(session: Session) -> None:
    """Start the server, unless it runs. It stays when this command ends."""
    directory = _directory(session)
    socket = embedded.ensure(directory)
    answer(session.json, {"running": True, "socket": socket}, f"The server of {directory} runs on {socket}.")


@server.command("stop")
@pass_session
def stop(session: Session) -> None:
    """Stop the server. What it has acknowledged is kept."""
    session.check_writable("server stop")
    directory = _directory(session)
    ran = embedded.stop(directory)
    words = f"The server of {directory} is stopped." if ran else f"No server ran on {directory}."
    answer(session.json, {"running": False, "ran": ran}, words)


@server.command("status")
@pass_session
def status(session: Session) -> int:
    """What runs; exit code 1 if nothing does."""
    directory = _directory(session)
    state = embedded.status(directory)
    if state is None:
        answer(session.json, {"running": False}, f"No server runs on {directory}.")
        return 1
    data = {
        "running": True,
        "pid": state.pid,
        "socket": state.socket,
        "version": state.version,
        "uptime": state.uptime,
        "used_memory": state.used_memory,
    }
    words = (
        f"{state.version}, process {state.pid}, up for {duration_words(timedelta(seconds=state.uptime))}, "
        f"{' '.join(size_of(state.used_memory))}, on {state.socket}"
    )
    answer(session.json, data, words)
    return 0


def _directory(session: Session) -> Path:
    endpoint = session.bus.endpoint
    if endpoint.directory is None:
        remark("Only an embedded:// server is started and stopped from here.")
        raise click.ClickException(f"{endpoint.safe_url} is a server of its own.")
    return endpoint.directory
