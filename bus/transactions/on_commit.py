"""publish_on_commit: publishes a message after the database transaction has committed.

Django calls its hooks from a list, and one that raises keeps the rest of them from being called. A publish
that fails must be heard of, but not do that. So its hook logs the failure, puts another hook at the end of
the list that is being walked, and lets that one raise. Where it is not known which list that is (a savepoint
was rolled back since, or captureOnCommitCallbacks calls the hooks), it raises at once.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from bus.safety.complaints import write

if TYPE_CHECKING:
    from bus.publishing.draft import Draft
    from bus.publishing.publisher import Publisher

logger = logging.getLogger("bus.on_commit")


def send_on_commit(publisher: Publisher, draft: Draft, using: str | None) -> None:
    """Send a draft when the transaction in this database commits; now if there is none. Needs Django.

    `using`: the alias of the database. Without a transaction this raises what `Publisher.send` raises.
    """
    from django.db import DEFAULT_DB_ALIAS, transaction

    alias = using or DEFAULT_DB_ALIAS
    hook = _Hook(publisher, draft)
    transaction.on_commit(hook, using=alias)  # calls it now, if there is no transaction
    hook.hooks = transaction.get_connection(alias).run_on_commit


class _Hook:
    """Sends one draft after the commit."""

    def __init__(self, publisher: Publisher, draft: Draft) -> None:
        self._publisher = publisher
        self._draft = draft
        self.hooks: list[Any] | None = None
        """The list in which this hook stands; Django takes each hook out of it before it calls it."""

    def __call__(self) -> None:
        if self.hooks is None:
            self._publisher.send(self._draft)
            return
        try:
            self._publisher.send(self._draft)
        except Exception as error:
            write(
                logger,
                logging.ERROR,
                "A message for topic %r was not published after the commit of its transaction: %s",
                self._draft.topic,
                error,
                exc_info=error,
            )
            if any(entry[1] is self for entry in self.hooks):
                raise  # another list is being walked
            _raise_last(self.hooks, error)


def _raise_last(hooks: list[Any], error: Exception) -> None:
    """Have the last of these hooks raise the error, or add it as a note if that one raises another."""
    for entry in hooks:
        if isinstance(entry[1], _Raise):
            entry[1].add(error)
            return
    hooks.append((set(), _Raise(error), False))


class _Raise:
    """Raises what an earlier hook would have raised."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def add(self, error: Exception) -> None:
        self._error.add_note(f"Also: {type(error).__name__}: {error}")

    def __call__(self) -> None:
        raise self._error
