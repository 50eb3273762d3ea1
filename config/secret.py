"""The secret key of a checkout: made once, kept in a file that only its owner can read."""

from __future__ import annotations

from pathlib import Path

from django.core.management.utils import get_random_secret_key

from bus.safety import private


def secret_key(file: Path) -> str:
    """Return the key in `file`; make it if it is missing. Raises ConfigurationError if it is not ours."""
    return private.text(file, get_random_secret_key)
