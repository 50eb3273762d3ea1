"""What the handlers write down. Nothing here is unique: whatever is done twice is seen twice."""

from __future__ import annotations

from django.db import models


class Total(models.Model):
    """The sum of one group."""

    group = models.CharField(max_length=100)
    amount = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.group}: {self.amount}"


class Entry(models.Model):
    """One message that a group has handled."""

    group = models.CharField(max_length=100)
    n = models.IntegerField()

    def __str__(self) -> str:
        return f"{self.group}: {self.n}"
