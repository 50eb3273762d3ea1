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
    """Return the model of declared topics."""
    model: type[Topic] = apps.get_model("jitney", "Topic")
    return model


def every() -> Any:
    """Return the query of all declared topics."""
    return model()._default_manager.all()


def find(name: str) -> TopicSpec | None:
    """Return the spec of a topic in the database; None if it has none, or cannot be asked.

    A publisher asks for a topic whose record in Redis is gone. It must not fail for a database that is away,
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
