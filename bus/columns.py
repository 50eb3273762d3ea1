"""Columns of our tables that databases must not treat each in their own way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

if TYPE_CHECKING:
    _CharField = models.CharField[str, str]
else:
    _CharField = models.CharField


class ExactCharField(_CharField):
    """Text that is compared byte for byte.

    SQLite and PostgreSQL do that anyway. MariaDB and MySQL go by the collation of the database, in which
    group `Mail` and group `mail` are usually one, so that a message of one would be known to the other.
    """

    def db_parameters(self, connection: BaseDatabaseWrapper) -> dict[str, Any]:
        found: dict[str, Any] = dict(super().db_parameters(connection))
        if connection.vendor == "mysql":
            found["collation"] = "utf8mb4_bin"
        return found
