"""The secret key of a checkout: made once, kept in a file that only its owner can read."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from django.core.management.utils import get_random_secret_key


def secret_key(file: Path) -> str:
    """The key in `file`, which is made if it is missing.

    However many processes start at once, all get the same key: it is written in full under another
    name first, and only one of them can give it its own.
    """
    if not file.exists():
        descriptor, fresh = tempfile.mkstemp(dir=file.parent)  # mode 0600
        try:
            os.write(descriptor, get_random_secret_key().encode())
            with suppress(FileExistsError):
                os.link(fresh, file)
        finally:
            os.close(descriptor)
            os.unlink(fresh)
    return file.read_text()
