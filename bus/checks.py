"""The system checks of `bus`.

jitney.E001   the BUS setting is wrong
jitney.E002   another package is imported under the name of one of Jitney's
jitney.E003   the app `workers` is installed without `bus` (workers.apps reports it)
jitney.E004   a handler is atomic in a database where it cannot be
jitney.E005   a consumers.py cannot be imported, so no worker could start
jitney.W001   our tables are in a database of a kind that Jitney was never tried with
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.core.checks import CheckMessage, Error, Warning
from django.db import connections, router

from bus import conf, default
from bus.databases import is_configured
from bus.errors import ConfigurationError

#: The packages of the distribution, which stand side by side in one directory.
PACKAGES = ("bus", "workers", "admin_ui")


def check_setting(**_: Any) -> list[CheckMessage]:
    """Check that the BUS setting can be read, and that its URL is of a known kind. Opens no connection."""
    try:
        conf.from_django()
    except ConfigurationError as error:
        return [Error(str(error), hint="See BUS in the settings of the project.", id="jitney.E001")]
    return []


def check_handlers(**_: Any) -> list[CheckMessage]:
    """Check that handlers can be imported, and that each atomic one has a database where it can be atomic.

    It looks at the handlers that this process knows. The command `check` imports `consumers.py` first, as a
    worker does. Other commands run these checks too, but a web process needs nothing of what handlers import,
    and `migrate` must not fail because of it.
    """
    from bus import autodiscover
    from bus.transactions.inbox import check_databases as check

    if _is_check_command():
        try:
            autodiscover.consumers()
        except Exception as error:  # whatever a module of the project raises
            text = f"A consumers.py cannot be imported: {type(error).__name__}: {error}"
            return [Error(text, hint="No worker could start with it.", id="jitney.E005")]
    try:
        check(default.subscriptions)
    except ConfigurationError as error:
        return [Error(str(error), hint="Give the alias of a database, or True.", id="jitney.E004")]
    return []


def _is_check_command() -> bool:
    return "django.core.management" in sys.modules and sys.argv[1:2] == ["check"]


def check_vendors(*, databases: Collection[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Check that the databases that may have our tables are of a kind that the tests run on.

    Opens a connection only to `databases`, which Django gives to `check --database` and `migrate`: Django has
    one vendor for MariaDB and MySQL, and only the server tells which of them it is.
    """
    from bus.models import OutboxRow

    return [
        Warning(
            f"Database {alias!r} is {connections[alias].display_name}. Jitney was never tried with it.",
            hint="Use SQLite, PostgreSQL or MariaDB, or have a database router keep 'jitney' out of it.",
            id="jitney.W001",
        )
        for alias in connections
        if is_configured(alias)
        and router.allow_migrate_model(alias, OutboxRow)
        and not _is_tried(alias, alias in (databases or ()))
    ]


def _is_tried(alias: str, may_ask: bool) -> bool:
    from bus.transactions.floor import SUPPORTED

    connection: Any = connections[alias]
    if connection.vendor == "mysql" and may_ask:
        return bool(connection.mysql_is_mariadb)
    return connection.vendor in SUPPORTED


def check_packages(**_: Any) -> list[CheckMessage]:
    """Check that no other package of the project hides one of ours."""
    home = Path(__file__).resolve().parent.parent
    return [
        Error(
            f"The name {name!r} stands for {path}, which is not Jitney's package of that name in {home}.",
            hint=f"Rename the other package, or put {home} before it on the import path.",
            id="jitney.E002",
        )
        for name in PACKAGES
        if (path := _path_of(name)) is not None and path.parent != home
    ]


def _path_of(package: str) -> Path | None:
    """Return the directory of a package, or the file of a module; None if there is none."""
    spec = find_spec(package)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin or package).resolve()
