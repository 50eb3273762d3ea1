"""The outbox: messages that are published with the database transaction, or not at all.

`write` puts a row into the database of the transaction that is open. After the commit a relay, in upkeep or
by `bus outbox relay`, sends it to Redis and deletes it:

- It locks one partition at a time (its shard row, FOR UPDATE SKIP LOCKED), so several relays share the work.
  SQLite has no such locks: there one relay works at a time, the one that holds the lock of a file.
- It reads the rows of the partition from the lowest id, as many as one write takes, and sends them. Then it
  deletes exactly those that Redis has confirmed. It keeps no cursor: a transaction with lower ids may commit
  later.
- Each row has a message_id, under which Redis stores it once. Redis knows the id for KEEP_SECONDS until the
  row is deleted, and for the dedupe window from then on, so a relay that dies between the confirmation and
  the deletion doubles nothing. Rows that were read too long ago (the process was frozen) are not sent, but
  read again.

Exactness and order need no lock. Whoever sends, sends the lowest rows first and under their ids; so a row is
stored first by somebody who sends all before it too, and what is sent a second time is known.
"""

from __future__ import annotations

import fcntl
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db import connections, router, transaction
from django.db.models.functions import Length

from bus.databases import aware, distinct
from bus.errors import BusError, BusFull, BusUnavailable, InvalidMessage, NotInTransaction, PublishUncertain
from bus.format.netstrings import pack, unpack
from bus.publishing.publisher import MAX_DEDUPED
from bus.safety.complaints import Complaints

if TYPE_CHECKING:
    from bus.client import Bus
    from bus.publishing.options import PublishOptions
    from bus.publishing.packer import PartitionRef
    from bus.values import TopicSpec

logger = logging.getLogger("bus.outbox")
complaints = Complaints(logger)

#: Bytes of messages in one write, beyond the first message.
BYTES_A_WRITE = 1024 * 1024
#: Writes for one partition before the next one is looked at.
WRITES_A_VISIT = 4
#: How long Redis knows the id of a row that was sent and is not deleted. Seconds: a relay that died should
#: have a successor within a day.
KEEP_SECONDS = 86_400
#: The most rows that `backlog` counts.
COUNTED = 10_000


def write(bus: Bus, topic: str, value: Any, options: PublishOptions, using: str | None = None) -> None:
    """Write a message into the outbox of the database `using`, in the transaction that is open there.

    `options`: without delay and at. Raises InvalidMessage, NotInTransaction, UnknownTopic, the database's
    errors; and BusUnavailable for a topic that neither code nor this database knows, so that Redis must be
    asked.
    """
    from bus.models import OutboxRow

    alias = using or router.db_for_write(OutboxRow)
    if not connections[alias].in_atomic_block:
        raise NotInTransaction(
            f"publish_in_transaction({topic!r}) was called without a transaction in database {alias!r}. Use "
            "it inside of transaction.atomic(), with the changes that the message tells of; else publish()."
        )
    message_id = uuid.uuid4().hex if options.message_id is None else options.message_id
    draft = bus.publisher.draft(topic, value, options._replace(message_id=message_id))
    if "\0" in message_id:
        raise InvalidMessage(f"Message for {topic!r}: a message_id in a database cannot hold a zero byte.")
    OutboxRow.objects.using(alias).create(
        prefix=bus.settings.prefix,
        topic=topic,
        partition=draft.partition(_spec(bus, topic, alias).partitions, lambda: 0),
        message_id=message_id,
        fields=pack(draft.fields),
    )


def _spec(bus: Bus, topic: str, alias: str) -> TopicSpec:
    from bus.models import Topic

    if declared := bus.declared.get(topic):
        return declared
    row = Topic.objects.using(alias).filter(name=topic).first()
    return row.spec if row is not None else bus.registry.spec(topic)


# ---------------------------------------------------------------------- relay


def boot_time() -> float:
    """Return the seconds of a clock that goes on while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class Relay:
    """Sends the rows of one database to Redis. Not thread-safe, but several relays can work at once."""

    def __init__(self, bus: Bus, alias: str, *, clock: Callable[[], float] = boot_time) -> None:
        self._bus = bus
        self._alias = alias
        self._clock = clock
        self._last: PartitionRef = ("", -1)
        self._shards: set[PartitionRef] = set()
        """Partitions whose shard row is there."""
        self._complaints = Complaints(logger)
        self.failed: set[PartitionRef] = set()
        """Partitions (topic, number) whose rows could not be sent in the last run."""

    def run(self, seconds: float = 10.0) -> int:
        """Send rows for about so many seconds, at most WRITES_A_VISIT writes a partition; return how many.

        Makes one indexed query if there are no rows. Raises BusUnavailable, BusFull, PublishUncertain (the
        rows stay, for the next run), and the database's errors. It logs an error that concerns one partition
        alone, and goes on with the others.
        """
        ends, sent = time.monotonic() + seconds, 0
        self.failed = set()
        with self._alone() as mine:
            for ref in self._refs() if mine else []:
                self._last = ref
                try:
                    sent += self._visit(ref)
                except (BusUnavailable, BusFull, PublishUncertain):
                    raise
                except BusError as error:
                    self._complain(ref, error)
                if time.monotonic() > ends:
                    break
        return sent

    def _refs(self) -> list[PartitionRef]:
        """Return the partitions that have rows, those after the last one first: they go by rotation."""
        refs = [(topic, partition) for topic, partition in distinct(self._rows(), "topic", "partition")]
        return [ref for ref in refs if ref > self._last] + [ref for ref in refs if ref <= self._last]

    def _visit(self, ref: PartitionRef) -> int:
        sent = 0
        for _ in range(WRITES_A_VISIT):
            page = self._locked_page(ref) if self._locks else self._send_page(ref)
            self._shorten(ref, page)
            sent += len(page)
            if not page:
                break
        return sent

    def _shorten(self, ref: PartitionRef, message_ids: list[str]) -> None:
        """Have Redis forget the ids of rows that are deleted, after the dedupe window."""
        try:
            self._bus.publisher.shorten(*ref, message_ids)
        except BusUnavailable as error:
            complaints.trouble(error, "Ids of sent rows stay known for %s s: %s", KEEP_SECONDS, error)

    @property
    def _locks(self) -> bool:
        return bool(connections[self._alias].features.has_select_for_update_skip_locked)

    def _locked_page(self, ref: PartitionRef) -> list[str]:
        from bus.models import OutboxShard

        topic, partition = ref
        shards = OutboxShard._default_manager.using(self._alias)
        if ref not in self._shards:
            # Not in the transaction of who publishes: it would make all who publish wait for each other.
            fresh = OutboxShard(prefix=self._bus.settings.prefix, topic=topic, partition=partition)
            shards.bulk_create([fresh], ignore_conflicts=True)
            self._shards.add(ref)
        with transaction.atomic(using=self._alias):
            shard = shards.select_for_update(skip_locked=True).filter(
                prefix=self._bus.settings.prefix, topic=topic, partition=partition
            )
            if shard.first() is None:
                self._shards.discard(ref)  # another relay is at it, or somebody has deleted the row
                return []
            return self._send_page(ref)

    def _send_page(self, ref: PartitionRef) -> list[str]:
        """Send the lowest rows and delete them; return their message_ids."""
        topic, partition = ref
        read = self._clock()
        page = self._read(topic, partition)
        messages = [(message_id, unpack(bytes(fields))) for _, message_id, fields in page]
        if not page or self._clock() - read > self._bus.settings.dedupe_window / 4:
            return []  # a relay that was frozen for longer might send what nobody knows any more
        self._bus.publisher.send_deduped(topic, partition, messages, window=KEEP_SECONDS)
        self._rows().filter(pk__in=[pk for pk, *_ in page]).delete()
        return [message_id for _, message_id, _ in page]

    def _read(self, topic: str, partition: int) -> list[tuple[int, str, Any]]:
        """Return the lowest rows, as many as one write takes."""
        rows = self._rows().filter(topic=topic, partition=partition).order_by("id")
        chosen: list[int] = []
        total = 0
        for pk, size in rows.annotate(size=Length("fields")).values_list("pk", "size")[:MAX_DEDUPED]:
            total += size
            if chosen and total > BYTES_A_WRITE:
                break
            chosen.append(pk)
        return list(rows.filter(pk__in=chosen).values_list("pk", "message_id", "fields"))

    def _rows(self) -> Any:
        return _rows(self._bus, self._alias)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Yield False if another relay of this machine is at work on this SQLite database: it saves work."""
        connection = connections[self._alias]
        name = str(connection.settings_dict["NAME"])
        if connection.vendor != "sqlite" or name.startswith((":", "file:")):
            yield True
            return
        with ExitStack() as stack:
            mine = True
            try:
                file = stack.enter_context(open(f"{name}-outbox", "a"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                mine = False
            except OSError as error:
                logger.debug("The outbox is relayed without its lock: %s", error)
            yield mine

    def _complain(self, ref: PartitionRef, error: BusError) -> None:
        self.failed.add(ref)
        self._complaints.say(
            (ref, type(error)),
            "The outbox rows of %s/%s cannot be sent and stay: %s",
            *ref,
            error,
            level=logging.ERROR,
        )


# ---------------------------------------------------------------------- lag


@dataclass(frozen=True, slots=True)
class Backlog:
    """The rows of a database that are not sent yet."""

    rows: int
    oldest: datetime | None
    """When the lowest of them was written, by the clock of its writer."""
    more: bool = False
    """True: there are more rows than `rows`, which is COUNTED."""


@dataclass(frozen=True, slots=True)
class ShardBacklog:
    """The rows of one partition that are not sent yet."""

    database: str
    topic: str
    partition: int
    rows: int
    oldest: datetime | None


def backlog(bus: Bus, alias: str) -> Backlog:
    """Count the rows of a database, up to COUNTED."""
    rows = _rows(bus, alias)
    counted = rows.values("pk")[: COUNTED + 1].count()
    return Backlog(min(counted, COUNTED), _oldest(rows) if counted else None, counted > COUNTED)


def backlogs(bus: Bus, alias: str) -> Iterator[ShardBacklog]:
    """Count the rows of a database, partition by partition, all of them."""
    rows = _rows(bus, alias)
    for topic, partition in distinct(rows, "topic", "partition"):
        shard = rows.filter(topic=topic, partition=partition)
        yield ShardBacklog(alias, topic, partition, shard.count(), _oldest(shard))


def _oldest(rows: Any) -> datetime | None:
    return aware(rows.order_by("id").values_list("created", flat=True).first())


def _rows(bus: Bus, alias: str) -> Any:
    from bus.models import OutboxRow

    return OutboxRow._default_manager.using(alias).filter(prefix=bus.settings.prefix)
