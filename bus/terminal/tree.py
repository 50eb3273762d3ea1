"""The tree of commands, and how a run of it ends: 0 fine, 1 failed, 2 wrong usage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from bus.errors import BusError
from bus.terminal import dead, delayed, groups, messages, outbox, pending, server, state, topics
from bus.terminal.kinds import Branch
from bus.terminal.session import Session
from bus.unreadable import visible

root = Branch("bus", help="Topics, groups and messages of a Jitney bus. Every command knows --json.")
root.add_command(topics.topic)
root.add_command(topics.list_topics, "topics")
root.add_command(messages.publish)
root.add_command(messages.tail)
root.add_command(groups.group)
root.add_command(groups.list_groups, "groups")
root.add_command(dead.dead)
root.add_command(delayed.delayed)
root.add_command(pending.pending)
root.add_command(outbox.outbox)
root.add_command(state.workers)
root.add_command(state.doctor)
root.add_command(server.server)


def run(session: Session, arguments: Sequence[str], program: str) -> int:
    """Run a command; return the exit code. Errors are told on stderr."""
    try:
        code: Any = root.main(list(arguments), prog_name=program, obj=session, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("Stopped.", err=True)
        return 1
    except BusError as error:
        click.echo(f"Error: {visible(str(error))}", err=True)
        return 1
    return code if isinstance(code, int) else 0
