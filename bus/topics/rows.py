"""Topics as rows of the database."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.exceptions import AppRegistryNotReady, ImproperlyConfigured, SynchronousOnlyOperation
from django.db import DatabaseError, InterfaceError

from bus.values import TopicSpec

if TYPE_CHECKING:
    from bus.models import Topic

logger = logging.getLogger("bus.declarations")


def model() -> type[Topic]:
    model: type[Topic] = apps.get_model("jitney", "Topic")
    return model


def every() -> Any:
    return model()._default_manager.all()


def find(name: str) -> TopicSpec | None:
    """The spec of a topic that the database knows; None if it knows none, or cannot be asked.

    Publishers come here for a topic that Redis has lost. They must not fail for a database that is away,
    not migrated, or not to be used here (in an event loop): then the topic is unknown.
    """
    try:
        row = every().filter(name=name).first()
        return row.spec if row is not None else None
    except (
        AppRegistryNotReady,
        LookupError,
        ImproperlyConfigured,
        SynchronousOnlyOperation,
        DatabaseError,
        InterfaceError,
    ) as error:
        logger.warning("The database cannot be asked for topic %r: %s", name, error)
        return None
