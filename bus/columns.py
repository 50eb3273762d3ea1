"""Columns of our tables that databases must not treat each in their own way."""

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
    """A part of an id, of 64 bits, as databases have them: they know signed numbers only."""
    return part - 2**64 if part >= 2**63 else part


def unsigned(stored: int) -> int:
    """The inverse of `signed`."""
    return stored + 2**64 if stored < 0 else stored


class IdPartField(_BigIntegerField):
    """A part of an id. Those from 2**63 on, which only somebody else can have given, are stored negative:
    equal as they should be, and before all others where a database orders them."""

    def deconstruct(self) -> tuple[str, str, Sequence[Any], dict[str, Any]]:
        """In the database it is a BigIntegerField, so that is what migrations say."""
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
        found: dict[str, Any] = dict(super().db_parameters(connection))
        if connection.vendor == "mysql":
            found["collation"] = "utf8mb4_bin"
        return found
