"""What the atomic handlers write down. Nothing here is unique: whatever is done twice is seen twice."""

from __future__ import annotations

from django.db import models


class Booking(models.Model):
    """The effect of one message."""

    topic = models.CharField(max_length=100)
    partition = models.IntegerField()
    message = models.CharField(max_length=50)
    """Its id."""

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition} {self.message}"
