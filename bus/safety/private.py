"""Makes directories and files that only their owner can use: 0700 and 0600, whatever the umask."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bus.errors import ConfigurationError


def directory(path: Path) -> Path:
    """Make a directory, with its parents, or check that it is ours and only ours.

    Raises ConfigurationError.
    """
    missing = [ancestor for ancestor in (path, *path.parents) if not ancestor.exists()]
    for ancestor in reversed(missing):
        with suppress(FileExistsError):  # another process was faster
            ancestor.mkdir(mode=0o700)
            ancestor.chmod(0o700)  # a umask can only take away
    _own(path, stat.S_ISDIR, "directory", 0o700)
    return path


def file(path: Path) -> Path:
    """Make an empty file, or check that it is ours and only ours. Raises ConfigurationError."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    _own(path, stat.S_ISREG, "file", 0o600)
    return path


def text(path: Path, make: Callable[[], str]) -> str:
    """Return the text of a file, which is made of `make()` if it is missing. Raises ConfigurationError.

    However many processes start at once, all get the same text. Each writes its own in full under another
    name, and only one of them can give it the name of the file.
    """
    if not os.path.lexists(path):
        descriptor, fresh = tempfile.mkstemp(dir=path.parent)  # mode 0600
        try:
            os.write(descriptor, make().encode())
            with suppress(FileExistsError):
                os.link(fresh, path)
        finally:
            os.close(descriptor)
            os.unlink(fresh)
    _own(path, stat.S_ISREG, "file", 0o600)
    return path.read_text()


def _own(path: Path, is_kind: Callable[[int], bool], kind: str, mode: int) -> None:
    """Refuse a link and what belongs to another user; take away what others may do with ours."""
    info = path.lstat()
    shared = info.st_mode & stat.S_ISVTX  # such as /tmp, which other users need
    if not is_kind(info.st_mode) or info.st_uid != os.geteuid() or shared:
        raise ConfigurationError(
            f"{path} must be a {kind} of user {os.geteuid()}, and no link: others could read or replace what "
            "is kept there. Remove it, or name another place."
        )
    if stat.S_IMODE(info.st_mode) & 0o077:
        path.chmod(mode)
