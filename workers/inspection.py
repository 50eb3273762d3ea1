"""Takes the passwords out of what `celery inspect` shows of a worker.

Whoever may write to the broker can ask each worker for its settings and connections. Celery hides settings by
their names alone: not `BUS["URL"]`, not the hostname of a unix socket, which for kombu is the whole URL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping
from functools import wraps
from typing import Any

#: The commands that show settings or connections. Some have an alias, which is the same function.
COMMANDS = ("conf", "stats", "report")
#: Names of what is not shown at all.
_HIDDEN = re.compile("pass|secret|token", re.IGNORECASE)
_MASK = "***"

Command = Callable[..., Any]


def mask(commands: MutableMapping[str, Command]) -> None:
    """Replace Celery's commands by those that show no passwords. Idempotent. `commands`: those of
    `celery.worker.control.Panel`, by name.
    """
    showing = {command: _masking(command) for name, command in commands.items() if name in COMMANDS}
    for name, command in commands.items():
        commands[name] = showing.get(command, command)


def _masking(command: Command) -> Command:
    if getattr(command, "shows_no_passwords", False):
        return command

    @wraps(command)
    def masking(*args: Any, **kwargs: Any) -> Any:
        return masked(command(*args, **kwargs))

    masking.shows_no_passwords = True  # type: ignore[attr-defined]
    return masking


def masked(shown: Any) -> Any:
    """Return the same JSON value without passwords: those of URLs, and what stands under a name of one."""
    from bus.reporting import without_passwords  # not before Django is set up

    if isinstance(shown, str):
        return "\n".join(map(without_passwords, shown.split("\n")))
    if isinstance(shown, Mapping):
        return {
            name: _MASK if value and _is_hidden(name, value) else masked(value)
            for name, value in shown.items()
        }
    if isinstance(shown, list | tuple):
        return [masked(value) for value in shown]
    return shown


def _is_hidden(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, str) and bool(_HIDDEN.search(name))
