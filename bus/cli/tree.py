"""The tree of commands, and how a run of it ends: 0 fine, 1 failed, 2 wrong usage."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

import click

from bus.cli import dead, delayed, groups, messages, outbox, pending, positions, server, state, topics
from bus.cli.kinds import Branch
from bus.cli.session import Session
from bus.errors import BusError
from bus.safety.unreadable import visible

root = Branch("bus", help="Topics, groups and messages of a Jitney bus. Every command knows --json.")
root.add_command(topics.topic)
root.add_command(topics.list_topics, "topics")
root.add_command(messages.publish)
root.add_command(messages.tail)
groups.group.add_command(positions.reset)
groups.group.add_command(positions.positions_command)
root.add_command(groups.group)
root.add_command(groups.list_groups, "groups")
root.add_command(dead.dead)
root.add_command(delayed.delayed)
root.add_command(pending.pending)
root.add_command(outbox.outbox)
root.add_command(state.workers)
root.add_command(state.doctor)
root.add_command(server.server)


#: Why an answer could not be written.
_UNWRITTEN = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def run(session: Session, arguments: Sequence[str], program: str) -> int:
    """Run a command; return the exit code. Errors are told on stderr."""
    output, errors = sys.stdout, sys.stderr
    if sys.stdout is None:
        click.echo("Error: there is no standard output to answer on.", err=True)
        return 1
    try:
        code = _run(session, arguments, program)
        sys.stdout.flush()
    except SystemExit:
        # click ends the process where nobody reads a pipe any more (`| head`), and replaces both.
        if sys.stdout is output:
            raise
        return _unwritten(output, errors, errno.EPIPE)
    except OSError as error:
        if error.errno not in _UNWRITTEN:
            raise
        return _unwritten(output, errors, error.errno)
    return code


def _unwritten(output: TextIO, errors: TextIO, number: int) -> int:
    sys.stdout, sys.stderr = output, errors
    # What is left in the buffer goes nowhere, or Python would complain once more when it ends.
    with suppress(io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    click.echo(f"Error: the answer cannot be written: {os.strerror(number)}.", err=True)
    return 1


def _run(session: Session, arguments: Sequence[str], program: str) -> int:
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
