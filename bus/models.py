"""The tables in the database: declared topics, the audit, copies of marks, inbox and outbox."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from django.core.exceptions import ValidationError
from django.db import models

from bus.columns import ExactCharField, IdPartField
from bus.errors import ConfigurationError
from bus.topics import declared
from bus.values import MAX_PARTITIONS, TopicSpec, check_name, check_new_name


class Topic(models.Model):
    """A declared topic.

    Redis has a copy of it. Change topics by `bus.operating.operate`, which changes both.
    """

    class Origin(models.TextChoices):
        CODE = "code", "from code"
        ADMIN = "admin", "from the admin"
        CLI = "cli", "from the command line"

    name = ExactCharField(
        max_length=100,
        unique=True,
        help_text="Letters, digits, '.', '_' and '-'. It cannot be changed later.",
    )
    partitions = models.PositiveIntegerField(
        default=1,
        help_text=f"1 to {MAX_PARTITIONS:,}. More can be added later (which moves keys to other partitions); "
        "they can never become fewer.",
    )
    retention = models.DurationField(
        null=True,
        blank=True,
        help_text="How long messages are kept once every group has settled them, such as '7 00:00:00' for "
        "seven days. Empty: for ever.",
    )
    notes = models.TextField(blank=True, help_text="For people: what is in it, who owns it.")
    origin = models.CharField(max_length=10, choices=Origin, default=Origin.ADMIN, editable=False)
    created = models.DateTimeField(auto_now_add=True)
    changed = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name"]
        permissions = [
            ("publish_messages", "Can publish messages"),
            ("peek_messages", "Can read messages"),
            ("manage_groups", "Can create, pause, resume, move and delete groups"),
            ("retry_dead_letters", "Can retry dead letters"),
            ("discard_dead_letters", "Can discard dead letters"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def declared(self) -> TopicSpec | None:
        """What code declares under this name; None if the row alone decides."""
        return declared.by_code.get(self.name)

    @property
    def spec(self) -> TopicSpec:
        """The row as a value. Raises ConfigurationError if a rule is broken."""
        return TopicSpec(name=self.name, partitions=self.partitions, retention=self.retention)

    def clean(self) -> None:
        """Check every rule. Raises ValidationError with one text per field."""
        errors: dict[str, str] = {}
        self._check_partitions(errors)
        if self.retention is not None and self.retention <= timedelta(0):
            errors["retention"] = "Retention must be longer than zero; empty keeps messages for ever."
        before = type(self).objects.filter(pk=self.pk).first() if self.pk else None
        self._check_name(errors, check_new_name if before is None else check_name)
        if before is not None:
            self._check_change(before, errors)
        elif self.declared is not None:
            errors["name"] = f"Topic {self.name!r} is declared in code; `bus topic sync` stores it here."
        if errors:
            raise ValidationError(errors)

    def _check_name(self, errors: dict[str, str], check: Callable[[str, object], str]) -> None:
        try:
            check("Topic", self.name)
        except ConfigurationError as error:
            errors["name"] = str(error)

    def _check_partitions(self, errors: dict[str, str]) -> None:
        if self.partitions is not None and not 1 <= self.partitions <= MAX_PARTITIONS:
            errors["partitions"] = f"A topic has 1 to {MAX_PARTITIONS:,} partitions, not {self.partitions:,}."

    def _check_change(self, before: Topic, errors: dict[str, str]) -> None:
        if self.name != before.name:
            errors["name"] = f"A topic cannot be renamed: make a new one, and delete {before.name!r} later."
        if before.declared is not None:
            self._check_read_only(before, errors)
        elif self.partitions is not None and self.partitions < before.partitions:
            errors.setdefault(
                "partitions",
                f"Topic {before.name!r} has {before.partitions} partitions and cannot shrink to "
                f"{self.partitions}: messages of the last ones would be cut off. Make a new topic instead.",
            )

    def _check_read_only(self, before: Topic, errors: dict[str, str]) -> None:
        for field in ("partitions", "retention"):
            if getattr(self, field) != getattr(before, field):
                errors[field] = (
                    f"Topic {before.name!r} is declared in code: change its {field} there. "
                    "Only its notes can be changed here."
                )


class AuditRecord(models.Model):
    """One verb of an operator, and its outcome. A record is never changed."""

    class Source(models.TextChoices):
        ADMIN = "admin", "admin"
        CLI = "cli", "command line"

    class Outcome(models.TextChoices):
        OK = "ok", "ok"
        FAILED = "failed", "failed"

    when = models.DateTimeField(auto_now_add=True, db_index=True)
    who = models.CharField(max_length=200, null=True, blank=True)  # noqa: DJ001 - null: nobody knows
    source = models.CharField(max_length=10, choices=Source)
    verb = models.CharField(max_length=50)
    topic = ExactCharField(max_length=100, blank=True)
    group = ExactCharField(max_length=100, blank=True)
    detail = models.JSONField(default=dict, blank=True)
    outcome = models.CharField(max_length=10, choices=Outcome, default=Outcome.OK)
    error = models.TextField(blank=True)

    class Meta:
        ordering = ["-when", "-pk"]
        indexes = [models.Index(fields=["topic", "-when"], name="jitney_audit_topic")]

    def __str__(self) -> str:
        place = "/".join(part for part in (self.topic, self.group) if part)
        return f"{self.verb} {place}: {self.outcome}"

    def fail(self, error: object) -> None:
        """Record that the verb did not come through."""
        self.outcome, self.error = self.Outcome.FAILED, str(error)


class _OfPartition(models.Model):
    """A row that belongs to a partition of a bus."""

    prefix = ExactCharField(max_length=100)
    topic = ExactCharField(max_length=100)
    partition = models.PositiveIntegerField()

    class Meta:
        abstract = True
        default_permissions = ()


class _OfPlace(models.Model):
    """A row that belongs to a place: a group in a partition, in one era (see bus.transactions.floor)."""

    group = ExactCharField(max_length=100)
    topic = ExactCharField(max_length=100)
    partition = models.PositiveIntegerField()
    era = ExactCharField(max_length=120, blank=True)

    class Meta:
        abstract = True
        default_permissions = ()


class MarkCopy(_OfPartition):
    """A copy of how far a group has settled one partition (see bus.transactions.marks)."""

    group = ExactCharField(max_length=100)
    born = ExactCharField(max_length=16)
    # With a default in the database, since workers of a version before it go on while others start.
    era = ExactCharField(max_length=120, blank=True, default="", db_default="")
    position = models.CharField(max_length=41)
    # Below the oldest message that waited: so far older data may be passed over; "" of a version before.
    safe = models.CharField(max_length=41, blank=True, default="", db_default="")
    copied = models.DateTimeField(auto_now=True)

    class Meta(_OfPartition.Meta):
        constraints = [
            models.UniqueConstraint(fields=["prefix", "topic", "partition", "group"], name="jitney_mark_copy")
        ]

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition} for {self.group}: {self.position}"


class InboxRow(_OfPlace):
    """A message that an atomic handler has handled (see bus.transactions.inbox)."""

    ms = IdPartField()
    seq = IdPartField()

    class Meta(_OfPlace.Meta):
        constraints = [
            # In this order deletion finds its places and its rows by the same index.
            models.UniqueConstraint(
                fields=["group", "topic", "partition", "era", "ms", "seq"], name="jitney_inbox_row"
            )
        ]

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.ms}-{self.seq} for {self.group}"


class InboxFloor(_OfPlace):
    """How far a place's messages are settled for good, except open ones (see bus.transactions.floor)."""

    ms = IdPartField(default=0)
    seq = IdPartField(default=0)
    letter_ms = IdPartField(default=0)
    letter_seq = IdPartField(default=0)
    letters = models.PositiveIntegerField(default=0)
    version = models.BigIntegerField(default=0)

    class Meta(_OfPlace.Meta):
        constraints = [
            models.UniqueConstraint(fields=["group", "topic", "partition", "era"], name="jitney_inbox_floor")
        ]

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition} for {self.group}: {self.ms}-{self.seq}"


class InboxOpen(models.Model):
    """A message not settled for good, though maybe below the floor (see bus.transactions.forgetting)."""

    floor = models.ForeignKey(InboxFloor, on_delete=models.CASCADE, db_constraint=False, db_index=False)
    ms = IdPartField()
    seq = IdPartField()
    letter_ms = IdPartField(default=0)
    letter_seq = IdPartField(default=0)

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["floor", "ms", "seq", "letter_ms", "letter_seq"], name="jitney_inbox_open"
            )
        ]

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"


class OutboxRow(_OfPartition):
    """A message that was published in a transaction and is not in Redis yet (see bus.transactions.outbox)."""

    message_id = ExactCharField(max_length=200)
    fields = models.BinaryField()
    created = models.DateTimeField(auto_now_add=True)

    class Meta(_OfPartition.Meta):
        indexes = [models.Index(fields=["prefix", "topic", "partition", "id"], name="jitney_outbox_order")]

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}: {self.message_id}"


class OutboxShard(_OfPartition):
    """The row that a relay locks while it sends the rows of one partition (see bus.transactions.outbox)."""

    class Meta(_OfPartition.Meta):
        constraints = [
            models.UniqueConstraint(fields=["prefix", "topic", "partition"], name="jitney_outbox_shard")
        ]

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"
