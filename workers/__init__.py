"""Celery workers as consumers of the bus. `celery -A workers worker` finds its app here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.celery import app, install

__all__ = ["app", "install"]


def __getattr__(name: str) -> Any:
    # Made when first asked for: Django imports this package as an app, before Celery may look at settings,
    # and a project with a Celery app of its own must not get a second one.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # `celery -A` has the current directory on the path only while it imports this module, not now.
    beside = str(Path(__file__).resolve().parent.parent)
    if beside not in sys.path:
        sys.path.insert(0, beside)
    from workers import celery

    return getattr(celery, name)
