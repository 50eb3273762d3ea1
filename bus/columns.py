"""Columns of our tables that mean the same in every database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

if TYPE_CHECKING:
    _BigIntegerField = models.BigIntegerField[int, int]
    _CharField = models.CharField[str, str]
else:
    _BigIntegerField = models.BigIntegerField
    _CharField = models.CharField


def signed(part: int) -> int:
    """Return a part of an id, of 64 bits, as a signed number: databases know no others."""
    return part - 2**64 if part >= 2**63 else part


def unsigned(stored: int) -> int:
    """Return the part of an id that `signed` returned a number for."""
    return stored + 2**64 if stored < 0 else stored


class IdPartField(_BigIntegerField):
    """A part of an id.

    Those from 2**63 on, which only somebody else can have given, are stored negative. They are equal where
    they should be, and a database puts them before all others.
    """

    def deconstruct(self) -> tuple[str, str, Sequence[Any], dict[str, Any]]:
        """Say BigIntegerField in migrations: that is what it is in the database."""
        name, _, arguments, options = super().deconstruct()
        return name, "django.db.models.BigIntegerField", arguments, options

    def get_prep_value(self, value: Any) -> Any:
        part = super().get_prep_value(value)
        return signed(part) if isinstance(part, int) else part

    def from_db_value(self, value: Any, *_about: Any) -> Any:
        return unsigned(value) if isinstance(value, int) else value


class ExactCharField(_CharField):
    """Text that is compared byte for byte.

    SQLite and PostgreSQL do that anyway. MariaDB and MySQL go by the collation of the database, in which
    group `Mail` and group `mail` are usually one, so that a message of one would be known to the other.
    """

    def db_parameters(self, connection: BaseDatabaseWrapper) -> dict[str, Any]:
        parameters: dict[str, Any] = dict(super().db_parameters(connection))
        if connection.vendor == "mysql":
            parameters["collation"] = "utf8mb4_bin"
        return parameters
