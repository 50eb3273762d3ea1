"""Imports the modules in which apps declare topics and handlers."""

from __future__ import annotations

from django.utils.module_loading import autodiscover_modules


def topics() -> None:
    """Import `topics.py` of every installed app, at the start of every process."""
    autodiscover_modules("topics")


def consumers() -> None:
    """Import `consumers.py` of every installed app, in workers and where handlers are looked at.

    Nothing else imports them, because a web process needs nothing of what handlers import.
    """
    autodiscover_modules("consumers")
