"""`jitney`: the command line without Django. It needs only BUS_URL (and BUS_PREFIX, if that is not "bus")."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bus.client import Bus


def main() -> int:
    """Entry point; the exit code is 0 fine, 1 failed, 2 wrong usage."""
    try:
        from bus.cli import tree
        from bus.cli.direct import Direct
        from bus.cli.session import Session
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.stderr.write("Error: the command line needs click and rich: pip install 'jitney[cli]'\n")
        return 1
    return tree.run(Session(_bus, Direct), sys.argv[1:], "jitney")


def _bus() -> Bus:
    from bus import testrun
    from bus.client import Bus
    from bus.errors import ConfigurationError

    if not os.environ.get("BUS_URL"):
        raise ConfigurationError("BUS_URL is not set: say where Redis is, such as redis://localhost:6379/0.")
    return Bus(testrun.from_environment())
